"""What a policy sees: raw loss histories to a fixed-size vector. Pure numpy, the same code in training, service and target.

    StageBoundary → normalised histories → flat_observation          (the paper's state, Eq. 3)
                  → context and source features → equivariant_observation

Both are functions of the boundary alone, so the service needs no state and a retry is harmless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proxymix.types import SourceReading, StageBoundary

FloatArray = NDArray[np.float64]

CONTEXT_FEATURES = ("bias", "log_total_regression", "log_current_loss", "log_num_buffers", "current_slope", "position")
"""Pooled features that decide the replay share."""
SOURCE_FEATURES = ("log_regression", "log_loss", "slope", "is_anchor", "is_freshest", "age")
"""One source's own features, which decide how the share is split."""

_LOSS_FLOOR = 0.05
"""Nats. Losses below it are as good as learnt; keeps the logarithms finite."""


@dataclass(frozen=True)
class Normalisation:
    """Constants of the running statistics (paper: z-score with running mean and variance per source)."""

    rate: float = 0.1
    """Weight of the newest reading in the exponential moving statistics."""
    epsilon: float = 0.01
    """Added to the variance, nats²: changes far below 0.1 nats count as none."""
    clip: float = 5.0
    """Normalised losses stay within ± this."""


def normalised(losses: Sequence[float], constants: Normalisation = Normalisation()) -> FloatArray:
    """ℓ̃ for every reading of one source's history, `[num_readings]`.

    z_t uses the statistics *before* reading t updates them, so a reading is never compared with itself; the first is 0.

    >>> normalised([2.0, 2.0, 2.05]).round(2).tolist()
    [0.0, 0.0, 0.5]
    """
    mean, variance = float(losses[0]), 0.0
    scores = np.zeros(len(losses))
    for index, loss in enumerate(losses[1:], start=1):
        gap = loss - mean
        scores[index] = np.clip(gap / np.sqrt(variance + constants.epsilon), -constants.clip, constants.clip)
        mean += constants.rate * gap
        variance = (1 - constants.rate) * (variance + constants.rate * gap * gap)
    return scores


def last_change(scores: FloatArray) -> float:
    """Δℓ̃: the last normalised reading minus the one before; 0 when there is none before."""
    return float(scores[-1] - scores[-2]) if len(scores) > 1 else 0.0


def flat_observation(boundary: StageBoundary, max_sources: int, *, in_nats: bool = False) -> FloatArray:
    """The paper's state s = [ℓ̃_1..ℓ̃_T, Δℓ̃_1..Δℓ̃_T, onehot(k), p], `[3·max_sources + 1]`, zero for sources not yet visible.

    Slot i is the i-th visible source: anchors first, then tasks in the order they came. p ∈ [0, 1) is the progress inside the task.
    The paper reads every source at every decision; of one that was not, this is the state at its last reading, the change per stage.
    With `in_nats` ℓ stands for ℓ̃ (an ablation).

    Raises:
        ValueError: more sources are visible than `max_sources`.
    """
    if len(boundary.sources) > max_sources:
        raise ValueError(f"sources must number at most {max_sources} for a flat controller, got {len(boundary.sources)}; train an equivariant one")
    state = np.zeros((3, max_sources))
    for slot, source in enumerate(boundary.sources):
        read = source.losses[: len(source.losses) - source.age]
        scores = np.asarray(read) if in_nats else normalised(read)
        state[:, slot] = scores[-1], last_change(scores) / source.interval, source.role == "current"
    return np.append(state.ravel(), boundary.stage_index / boundary.num_stages)


def context_features(boundary: StageBoundary) -> FloatArray:
    """What the replay share is decided on, `[len(CONTEXT_FEATURES)]`, each of order 1."""
    current = boundary.current
    replayable = [source for source in boundary.sources if source.role != "current"]
    return np.array(
        [
            1.0,
            _log_scale(sum(_regression(source) for source in replayable)),
            _log_scale(current.losses[-1]),
            np.log(max(len(replayable), 1)),
            _relative_slope(current),
            boundary.stage_index / boundary.num_stages,
        ]
    )


def source_features(boundary: StageBoundary) -> FloatArray:
    """What the split of the replay share is decided on, `[num_sources, len(SOURCE_FEATURES)]`, each of order 1."""
    # The freshest past task has the shortest history; told so, the order of sources says nothing.
    fewest = min((len(source.losses) for source in boundary.sources if source.role == "past"), default=0)
    rows = [
        [
            _log_scale(_regression(source)),
            _log_scale(source.losses[-1]),
            _relative_slope(source),
            float(source.role == "anchor"),
            float(source.role == "past" and len(source.losses) == fewest),
            0.5 * math.log1p(source.age),
        ]
        for source in boundary.sources
    ]
    return np.array(rows)


def equivariant_observation(boundary: StageBoundary, max_sources: int) -> FloatArray:
    """Context, then padded source features, then the visible and current masks, flattened.

    Returns:
        `[C + N·F + 2N]` with N = `max_sources`; `equivariant_layout` says where each part lies.
    """
    count = len(boundary.sources)
    if count > max_sources:
        raise ValueError(f"controller.max_sources must be at least the number of visible sources, got {max_sources} for {count}")
    features = np.zeros((max_sources, len(SOURCE_FEATURES)))
    masks = np.zeros((2, max_sources))
    features[:count] = source_features(boundary)
    masks[0, :count] = 1.0
    masks[1, boundary.names.index(boundary.current.name)] = 1.0
    return np.concatenate([context_features(boundary), features.ravel(), masks.ravel()])


def equivariant_layout(max_sources: int) -> tuple[slice, slice, slice, slice]:
    """Slices of `equivariant_observation`: context, source features (row-major `[N, F]`), visible mask, current mask."""
    edges = np.cumsum([0, len(CONTEXT_FEATURES), max_sources * len(SOURCE_FEATURES), max_sources, max_sources]).tolist()
    return slice(*edges[0:2]), slice(*edges[1:3]), slice(*edges[2:4]), slice(*edges[3:5])


def _regression(source: SourceReading) -> float:
    """Nats lost since the source's own task ended; 0 while it is current or better than then."""
    return max(0.0, source.losses[-1] - source.reference_loss) if source.reference_loss is not None else 0.0


def _relative_slope(source: SourceReading) -> float:
    """Fall of the loss per stage between the last two readings, relative to its level, within ±1; 0 at the first reading."""
    if len(source.losses) < 2 + source.age:
        return 0.0
    before, now = source.losses[-2 - source.age], source.losses[-1]
    return max(-1.0, min(1.0, (before - now) / (before + _LOSS_FLOOR) / source.interval))


def _log_scale(nats: float) -> float:
    """Logarithm of a loss, shifted and scaled so that 0.01 to 5 nats span about −1 to 2."""
    return (math.log(max(nats, 0.0) + _LOSS_FLOOR) + 1.5) / 1.5


def in_nats(scaled: FloatArray) -> FloatArray:
    """The losses that `log_…` features of losses stand for, nats.

    >>> in_nats(np.array([_log_scale(0.5)])).round(9).tolist()
    [0.5]
    """
    return np.exp(1.5 * scaled - 1.5) - _LOSS_FLOOR
