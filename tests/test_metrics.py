import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from proxymix.metrics import assert_identity, continual_metrics, mean_and_error, relative_forgetting

# Rows: after task 1, 2, 3. The second task is at its best just when learnt, the first only after the second.
MATRIX = [
    [0.6, 0.0, 0.1],
    [0.8, 0.9, 0.2],
    [0.5, 0.7, 0.6],
]

matrices = st.integers(1, 7).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(0, 1)))


def test_metrics_by_hand():
    metrics = continual_metrics(MATRIX)
    assert metrics["AA"] == pytest.approx((0.5 + 0.7 + 0.6) / 3)
    assert metrics["NTA"] == pytest.approx((0.6 + 0.9 + 0.6) / 3)
    assert metrics["BWT"] == pytest.approx(((0.5 - 0.6) + (0.7 - 0.9)) / 2)
    assert metrics["FGT"] == pytest.approx(((0.8 - 0.5) + (0.9 - 0.7)) / 2)  # .8: the best of the first task, not its first score


def test_a_task_that_is_best_at_the_very_end_is_not_forgotten():
    """The best is sought before the last row and a rise is cut at 0, never counted as negative forgetting."""
    metrics = continual_metrics([[0.3, 0.0], [0.9, 0.5]])
    assert metrics["FGT"] == 0
    assert metrics["BWT"] == pytest.approx(0.6)


def test_one_task_cannot_be_forgotten():
    assert continual_metrics([[0.4]]) == {"AA": 0.4, "FGT": 0.0, "NTA": 0.4, "BWT": 0.0}


@given(matrices)
def test_identity_holds_for_every_matrix(matrix):
    metrics, count = continual_metrics(matrix), len(matrix)
    assert metrics["AA"] == pytest.approx(metrics["NTA"] + (count - 1) / count * metrics["BWT"], abs=1e-9)
    assert metrics["FGT"] >= max(0.0, -metrics["BWT"]) - 1e-9  # a drop from the best is at least the drop from the first


@given(matrices)
def test_cells_above_the_diagonal_are_not_used(matrix):
    unscored = matrix.copy()
    unscored[np.triu_indices_from(matrix, k=1)] = np.nan
    assert continual_metrics(unscored) == continual_metrics(matrix)


def test_a_broken_identity_is_an_error():
    with pytest.raises(ValueError, match="AA must equal"):
        assert_identity({"AA": 0.5, "NTA": 0.6, "BWT": 0.0}, 2)


@pytest.mark.parametrize("matrix", [[[0.5, 0.5]], [], [[[0.5]]], [[np.nan]], [[1.2]], [[0.5, 0.0], [-0.1, 0.5]], [[0.5, 0.0], [np.nan, 0.5]]])
def test_metrics_refuse_what_was_not_scored(matrix):
    with pytest.raises(ValueError, match="accuracy_matrix must"):
        continual_metrics(matrix)


def test_relative_forgetting_by_hand():
    rows = relative_forgetting(MATRIX)
    expected = [
        [1, 0, (0.6 - 0.8) / 0.6],
        [2, 0, (0.6 - 0.5) / 0.6],
        [1, 1, (0.9 - 0.7) / 0.9],
    ]
    assert rows == pytest.approx(np.array(expected))


def test_relative_forgetting_of_a_task_never_learnt_is_bounded_by_the_floor():
    assert relative_forgetting([[0.01, 0.0], [0.0, 0.5]], floor=0.05)[0, 2] == pytest.approx(0.2)
    assert relative_forgetting([[0.5]]).shape == (0, 3)


def test_mean_and_error():
    mean, error = mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == pytest.approx((2.0, 1 / np.sqrt(3)))  # sd 1, n 3
    assert np.isnan(mean_and_error([4.0])[1])
