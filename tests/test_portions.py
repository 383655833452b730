"""Every row of a batch is computed once, by one worker, in lines that are not too long; and every worker has as many of them."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from proxymix.data.encoding import IGNORED, Batch
from proxymix.data.portions import portions, row_lengths

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=9)


def batch_of(sizes):
    """Token t of row r is 100 r + t; the last tokens are the answer."""
    width = max(sizes)
    ids, labels = torch.zeros(len(sizes), width, dtype=torch.int64), torch.full((len(sizes), width), IGNORED)
    for row, size in enumerate(sizes):
        ids[row, :size] = 100 * row + torch.arange(size)
        labels[row, (size - 1) // 2 : size] = ids[row, (size - 1) // 2 : size] + 1
    return Batch(ids, labels)


@given(lengths, st.sampled_from([1, 2, 4]), st.sampled_from([None, 1, 2]), st.sampled_from([None, 12, 20]))
def test_rows_are_dealt_out_whole_and_once(sizes, world_size, at_once, room):
    batch = batch_of(sizes)
    assert row_lengths(batch.labels) == sizes
    shares = [portions(batch, rank=rank, world_size=world_size, lines_at_once=at_once, pack_tokens=room) for rank in range(world_size)]
    assert len({tuple(len(portion.input_ids) for portion in share) for share in shares}) == 1  # All meet in the same collective calls.
    found = {}
    for portion in (portion for share in shares for portion in share):
        assert portion.input_ids.shape[1] <= (room or max(sizes))
        positions = portion.positions if portion.positions is not None else torch.arange(portion.input_ids.shape[1]).expand_as(portion.rows)
        for line in range(len(portion.rows)):
            for row, place, token, label in zip(
                *(values[line].tolist() for values in (portion.rows, positions, portion.input_ids, portion.labels)), strict=True
            ):
                if label != IGNORED or token:  # Else padding, or the very first token.
                    assert (row, place) not in found
                    found[row, place] = (token, label)
    expected = {(r, t): (int(batch.input_ids[r, t]), int(batch.labels[r, t])) for r, size in enumerate(sizes) for t in range(size)}
    expected = {place: value for place, value in expected.items() if value[0] or value[1] != IGNORED}
    assert found == expected


@given(lengths)
def test_packs_are_few(sizes):
    lines = [line for portion in portions(batch_of(sizes), pack_tokens=12) for line in portion.input_ids]
    assert len(lines) <= max(1, 2 * sum(sizes) // 12 + 1)
