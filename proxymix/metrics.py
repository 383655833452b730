"""The measures of continual learning, each written down once (paper, Eq. 2). Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def continual_metrics(accuracy_matrix: ArrayLike) -> dict[str, float]:
    """AA, FGT, NTA and BWT of one run.

    With A[i, j] the test accuracy on task j after task i was finished:

    - AA  = mean_j A[T−1, j]                                            final average accuracy, higher is better
    - FGT = 1/(T−1) · Σ_{j<T−1} max(0, max_{j≤i≤T−2} A[i, j] − A[T−1, j])   drop from the best ever, lower is better
    - NTA = mean_j A[j, j]                                              accuracy when just learnt
    - BWT = 1/(T−1) · Σ_{j<T−1} (A[T−1, j] − A[j, j])                      negative when tasks are forgotten

    Args:
        accuracy_matrix: fractions, `[num_tasks, num_tasks]`; row = after task, column = task. Cells above the diagonal
            (tasks not yet tuned on) are not used and may be NaN.

    Returns:
        The four as fractions. FGT and BWT are 0 for a single task.

    Raises:
        ValueError: not square, or a used cell is not in [0, 1] (an unscored cell is NaN, never 0).

    >>> continual_metrics([[0.9, 0.1], [0.6, 0.8]])
    {'AA': 0.7, 'FGT': 0.3, 'NTA': 0.85, 'BWT': -0.3}
    """
    matrix = np.asarray(accuracy_matrix, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"accuracy_matrix must be square [num_tasks, num_tasks], got shape {matrix.shape}")
    used = matrix[np.tril_indices_from(matrix)]
    if not ((used >= 0) & (used <= 1)).all():
        raise ValueError(f"accuracy_matrix must hold fractions in [0, 1] on and below the diagonal, got {matrix.tolist()}; score what is missing")
    count, final, learnt = len(matrix), matrix[-1], np.diag(matrix)
    best = np.array([matrix[j : count - 1, j].max() for j in range(count - 1)])
    earlier = max(count - 1, 1)
    values = {
        "AA": final.mean(),
        "FGT": np.maximum(0.0, best - final[:-1]).sum() / earlier,
        "NTA": learnt.mean(),
        "BWT": (final[:-1] - learnt[:-1]).sum() / earlier,
    }
    assert_identity(values, count)
    return {name: round(float(value), 12) for name, value in values.items()}


def assert_identity(metrics: dict[str, float], num_tasks: int) -> None:
    """AA = NTA + (T−1)/T · BWT holds for every run; anything else is a bug in how the matrix was filled.

    Raises:
        ValueError: the identity is off by more than 1e-9.
    """
    expected = metrics["NTA"] + (num_tasks - 1) / num_tasks * metrics["BWT"]
    if abs(metrics["AA"] - expected) > 1e-9:
        raise ValueError(f"AA must equal NTA + (T-1)/T * BWT, got {metrics['AA']} and {expected}")


def relative_forgetting(accuracy_matrix: ArrayLike, floor: float = 0.05) -> FloatArray:
    """φ(i→j) = (A_i(i) − A_i(j)) / max(A_i(i), floor) for every j > i (Eq. 1).

    Args:
        accuracy_matrix: `[num_tasks, num_tasks]`; row = after task, column = task.
        floor: ε_A, the smallest accuracy worth dividing by.

    Returns:
        `[num_tasks·(num_tasks−1)/2, 3]`: rows (gap j−i, task i, φ), ordered by i then j.
    """
    matrix = np.asarray(accuracy_matrix, dtype=np.float64)
    rows = [(j - i, i, (matrix[i, i] - matrix[j, i]) / max(matrix[i, i], floor)) for i in range(len(matrix)) for j in range(i + 1, len(matrix))]
    return np.array(rows).reshape(-1, 3)


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Mean and standard error of the mean; the error of a single value is NaN (unknown, not 0)."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(array.size) if array.size > 1 else np.nan
    return float(array.mean()), float(error)
