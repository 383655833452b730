"""Logits to mixture weights, mixture weights to whole samples. Pure numpy.

action → logits → masked_mixture → weights → apportion → counts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def masked_mixture(logits: ArrayLike, visible: ArrayLike) -> FloatArray:
    """Softmax over the visible sources only (paper, Eq. 4); an invisible source has weight exactly 0.

    Args:
        logits: real numbers, one per source, `[num_sources]`. What stands at an invisible source is ignored, even NaN.
        visible: boolean mask, `[num_sources]`.

    Returns:
        Weights, `[num_sources]`, non-negative, summing to 1.

    Raises:
        ValueError: shapes differ, nothing is visible, or a visible logit is not finite.

    >>> masked_mixture([0.0, 5.0, 0.0], [True, False, True]).tolist()
    [0.5, 0.0, 0.5]
    """
    values, mask = np.asarray(logits, dtype=np.float64), np.asarray(visible, dtype=bool)
    if values.ndim != 1 or values.shape != mask.shape:
        raise ValueError(f"logits and visible must be vectors of one length, got shapes {values.shape} and {mask.shape}")
    if not mask.any():
        raise ValueError("visible must hold at least one True; a mixture needs something to draw from")
    if not np.isfinite(values[mask]).all():
        raise ValueError(f"logits must be finite where visible, got {values[mask].tolist()}")
    exponentials = np.zeros_like(values)
    exponentials[mask] = np.exp(values[mask] - values[mask].max())
    return np.asarray(exponentials / exponentials.sum())


def share_split_mixture(action: ArrayLike, visible: ArrayLike, current: int) -> FloatArray:
    """Weights from one *share* logit and one *split* logit per replayable source.

    The entry at `current` is the logit of the replay share, the others say how that share is split:
    w_i = σ(share) · softmax(split)_i and w_current = 1 − σ(share). It is `masked_mixture` of the logits
    share + split_i − logsumexp(split) and 0, so "how much" and "which" can be learnt apart.

    Args:
        action: `[num_sources]`.
        visible: boolean mask, `[num_sources]`; must hold `current`.
        current: index of the current task.

    Returns:
        Weights, `[num_sources]`; all on `current` if nothing else is visible.

    >>> share_split_mixture([0.0, 1.0, 1.0], [True, True, True], current=0).round(12).tolist()
    [0.5, 0.25, 0.25]
    """
    values, mask = np.asarray(action, dtype=np.float64), np.asarray(visible, dtype=bool)
    if not mask[current]:
        raise ValueError(f"current must be visible, got index {current} in {mask.tolist()}")
    replayable = mask.copy()
    replayable[current] = False
    if not replayable.any():
        return np.where(np.arange(mask.size) == current, 1.0, 0.0)
    split = values[replayable]
    peak = split.max()
    logits = np.zeros_like(values)
    logits[replayable] = values[current] + split - (peak + np.log(np.exp(split - peak).sum()))
    return masked_mixture(logits, mask)


def apportion(weights: ArrayLike, total: int) -> NDArray[np.int64]:
    """Whole samples per source by largest remainder: each within one of `weights · total`, summing to `total`.

    A weight of 0 gets exactly 0. Ties go to the lower index.

    >>> apportion([0.5, 0.3, 0.2], 8).tolist()
    [4, 2, 2]
    """
    shares = np.asarray(weights, dtype=np.float64) * total
    counts = np.floor(shares).astype(np.int64)
    remainder = np.where(shares > 0, shares - counts, -1.0)
    missing = total - int(counts.sum())
    counts[np.argsort(-remainder, kind="stable")[:missing]] += 1
    return counts


def checked_weights(weights: Mapping[str, float], visible: Sequence[str]) -> dict[str, float]:
    """`weights` in the order of `visible`.

    Raises:
        ValueError: they are no mixture over exactly the visible sources.
    """
    if set(weights) != set(visible):
        raise ValueError(f"weights must name exactly the visible sources {list(visible)}, got {list(weights)}")
    values = [float(weights[name]) for name in visible]
    if not all(np.isfinite(values)) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ValueError(
            f"mixture_weights must be non-negative and sum to 1 over visible sources, got {dict(weights)}; pass logits to masked_mixture"
        )
    return dict(zip(visible, values, strict=True))
