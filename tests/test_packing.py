import torch
from hypothesis import given
from hypothesis import strategies as st

from proxymix.learners.packing import Packing


@st.composite
def lengths(draw):
    """Of every row, `[replicas, rows]`."""
    replicas, rows = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    return torch.tensor(draw(st.lists(st.lists(st.integers(1, 7), min_size=rows, max_size=rows), min_size=replicas, max_size=replicas)))


@given(lengths())
def test_every_token_is_kept_in_order_and_comes_back_to_its_place(lengths):
    packing, replicas = Packing.of(lengths), len(lengths)
    filled = (torch.arange(packing.length) < lengths[..., None]).flatten(0, 1)
    rows = torch.where(filled, torch.arange(1, filled.numel() + 1).view_as(filled), 0)[..., None]
    tokens = packing.unpad(rows)
    assert tokens.shape[1] == lengths.sum(1).max()
    for replica, own in enumerate(rows.unflatten(0, (replicas, -1))):
        assert torch.equal(tokens[replica, : lengths[replica].sum(), 0], own[own > 0])
    assert torch.equal(packing.pad(tokens)[filled], rows[filled])
    assert torch.equal(tokens.flatten()[packing.starts.flatten()], rows[:, 0, 0])
