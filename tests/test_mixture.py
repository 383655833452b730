import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.mixture import apportion, masked_mixture, share_split_mixture

logits = st.floats(-50, 50)


@st.composite
def masked_logits(draw):
    values = draw(st.lists(logits, min_size=1, max_size=12))
    mask = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    mask[draw(st.integers(0, len(values) - 1))] = True
    return np.array(values), np.array(mask)


def test_masked_mixture_by_hand():
    # e^0 : e^ln 3 = 1 : 3; the middle source is not visible.
    assert masked_mixture([0.0, 9.0, np.log(3)], [True, False, True]) == pytest.approx([0.25, 0.0, 0.75])


@given(masked_logits())
def test_masked_mixture_lies_on_the_simplex_of_the_visible(case):
    values, mask = case
    weights = masked_mixture(values, mask)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights[~mask] == 0).all()


@given(masked_logits(), st.sampled_from([np.nan, np.inf, -np.inf, 1e300]))
def test_what_stands_at_an_invisible_source_changes_nothing(case, junk):
    values, mask = case
    assert np.array_equal(masked_mixture(np.where(mask, values, junk), mask), masked_mixture(values, mask))


@given(masked_logits(), st.floats(-1e3, 1e3))
def test_masked_mixture_ignores_a_shift_of_all_logits(case, shift):
    values, mask = case
    assert masked_mixture(values + shift, mask) == pytest.approx(masked_mixture(values, mask), abs=1e-9)


def test_masked_mixture_does_not_overflow():
    assert masked_mixture([1e4, -1e4], [True, True]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "mask", "message"),
    [
        ([0.0], [True, True], "one length"),
        ([[0.0]], [[True]], "vectors"),
        ([0.0, 1.0], [False, False], "at least one"),
        ([np.nan, 1.0], [True, True], "finite"),
        ([np.inf, 1.0], [True, False], "finite"),
    ],
)
def test_masked_mixture_refuses(values, mask, message):
    with pytest.raises(ValueError, match=message):
        masked_mixture(values, mask)


def test_share_split_by_hand():
    # σ(ln 3) = 3/4 is replayed, split 1 : 2 by the logits 0 and ln 2.
    assert share_split_mixture([0.0, np.log(3), np.log(2)], [True] * 3, current=1) == pytest.approx([0.25, 0.25, 0.5])


@given(masked_logits(), st.data())
def test_share_split_is_the_masked_mixture_of_its_logits(case, data):
    action, mask = case
    current = data.draw(st.sampled_from(np.flatnonzero(mask).tolist()))
    weights = share_split_mixture(action, mask, current)
    replayable = mask.copy()
    replayable[current] = False
    if not replayable.any():
        assert weights.tolist() == [float(i == current) for i in range(len(mask))]
        return
    expected = np.zeros_like(action)
    expected[replayable] = action[current] + action[replayable] - np.log(np.exp(action[replayable]).sum())
    assert weights == pytest.approx(masked_mixture(expected, mask), abs=1e-12)
    assert 1 - weights[current] == pytest.approx(1 / (1 + np.exp(-action[current])), abs=1e-12)


def test_share_split_needs_the_current_task_visible():
    with pytest.raises(ValueError, match="current must be visible"):
        share_split_mixture([0.0, 0.0], [True, False], current=1)


def test_apportion_by_hand():
    # 10 · (.44, .33, .23) = 4.4, 3.3, 2.3: whole parts 4 + 3 + 2, the one left goes to the largest remainder.
    assert apportion([0.44, 0.33, 0.23], 10).tolist() == [5, 3, 2]
    assert apportion([0.5, 0.5], 3).tolist() == [2, 1]  # a tie goes to the lower index


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-6), st.integers(0, 5000))
def test_apportion_is_whole_and_within_one_sample(raw, total):
    weights = np.array(raw) / sum(raw)
    counts = apportion(weights, total)
    assert counts.sum() == total
    assert (np.abs(counts - weights * total) < 1 + 1e-6).all()
    assert (counts[weights == 0] == 0).all()
