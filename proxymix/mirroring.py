"""Do proxy and target forget the same things first? The diagnostic that is asked before a controller is trusted. Pure numpy.

    forgetting values φ per (sequence, seed), proxy and target → ρ, interval, permutation p, ceiling, gap-partialled ρ → gate

Paper, Table 2; what it leaves open (protocol, interval, test) is decided in `paper.md` and repeated at each function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Pilot:
    """Relative forgetting of one sequence under one seed, on the same (i, j) pairs in the same order for both models."""

    sequence: str
    seed: int
    proxy: FloatArray
    """φ, `[num_pairs]`."""
    target: FloatArray
    """φ, `[num_pairs]`."""
    gaps: FloatArray
    """j − i of every pair, `[num_pairs]`: how long ago the task was learnt."""
    tasks: FloatArray = field(default_factory=lambda: np.empty(0))
    """i of every pair, `[num_pairs]`; with the gap it says which pair it is. Empty: not known, then there is no null."""


@dataclass(frozen=True)
class Mirroring:
    """The verdict and what it rests on."""

    rho: float
    """Mean over sequences and seeds of Spearman's ρ between proxy and target."""
    interval: tuple[float, float]
    """95 %, hierarchical bootstrap: sequences, then seeds."""
    p_value: float
    """Within-sequence permutation test, one-sided, (b+1)/(n+1)."""
    ceiling: float | None
    """Mean ρ of the target with itself under another seed; None with a single seed."""
    partial_rho: float
    """ρ with the gap j − i held fixed: mirroring beyond 'older is more forgotten'."""
    per_sequence: dict[str, float]
    null_rho: float | None = None
    """Mean ρ of the proxy on one sequence with the target on another, on the pairs of places that both know: what places alone explain."""


def ranks(values: ArrayLike) -> FloatArray:
    """Ranks from 0; ties share their mean rank.

    >>> ranks([3.0, 1.0, 3.0]).tolist()
    [1.5, 0.0, 1.5]
    """
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], dtype=np.float64)


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation in [−1, 1]; 0 when either is constant (nothing to rank, so nothing mirrored)."""
    return _correlation(ranks(first), ranks(second))


def partial_spearman(first: ArrayLike, second: ArrayLike, given: ArrayLike) -> float:
    """Rank correlation of `first` and `second` after the linear effect of the ranks of `given` is taken out of both."""
    fixed = np.stack([np.ones(np.size(given)), ranks(given)], axis=1)  # [num_pairs, 2]
    residuals = [values - fixed @ np.linalg.lstsq(fixed, values, rcond=None)[0] for values in (ranks(first), ranks(second))]
    return _correlation(*residuals)


def check_mirroring(pilots: Sequence[Pilot], rng: np.random.Generator, num_resamples: int = 2000) -> Mirroring:
    """ρ between proxy and target forgetting, with all that is needed to doubt it.

    Raises:
        ValueError: no pilots.
    """
    if not pilots:
        raise ValueError("pilots must not be empty; run at least one sequence on both models")
    by_sequence: dict[str, list[float]] = {}
    for pilot in pilots:
        by_sequence.setdefault(pilot.sequence, []).append(spearman(pilot.proxy, pilot.target))
    rho = float(np.mean([value for values in by_sequence.values() for value in values]))
    return Mirroring(
        rho=rho,
        interval=_hierarchical_interval(list(by_sequence.values()), rng, num_resamples),
        p_value=_permutation_p(pilots, rho, rng, num_resamples),
        ceiling=_seed_ceiling(pilots),
        partial_rho=float(np.mean([partial_spearman(p.proxy, p.target, p.gaps) for p in pilots])),
        per_sequence={name: float(np.mean(values)) for name, values in by_sequence.items()},
        null_rho=_other_order(pilots),
    )


def _correlation(first: FloatArray, second: FloatArray) -> float:
    if first.size < 2:
        return 0.0
    first, second = first - first.mean(), second - second.mean()
    norm = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / norm if norm > 1e-12 else 0.0


def _hierarchical_interval(groups: list[list[float]], rng: np.random.Generator, num_resamples: int) -> tuple[float, float]:
    means = np.empty(num_resamples)
    for index in range(num_resamples):
        drawn = [groups[g] for g in rng.integers(len(groups), size=len(groups))]
        means[index] = np.mean([rng.choice(values, size=len(values)).mean() for values in drawn])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _permutation_p(pilots: Sequence[Pilot], rho: float, rng: np.random.Generator, num_resamples: int) -> float:
    """Seeds of one sequence share the permutation: they repeat one experiment, and counting them as many would make chance look rare."""
    ranked = [(pilot.sequence, ranks(pilot.proxy), ranks(pilot.target)) for pilot in pilots]
    sequences, longest = dict.fromkeys(pilot.sequence for pilot in pilots), max(len(pilot.proxy) for pilot in pilots)
    exceeding = 0
    for _ in range(num_resamples):
        keys = {sequence: rng.random(longest) for sequence in sequences}
        permuted = np.mean([_correlation(proxy[np.argsort(keys[sequence][: len(proxy)])], target) for sequence, proxy, target in ranked])
        exceeding += bool(permuted >= rho - 1e-12)  # Equal orders may differ in the last bit of their sums.
    return (exceeding + 1) / (num_resamples + 1)


def _other_order(pilots: Sequence[Pilot]) -> float | None:
    places = [{pair: index for index, pair in enumerate(zip(p.tasks.tolist(), p.gaps.tolist(), strict=False))} for p in pilots]
    found = []
    for (one, ours), (other, theirs) in permutations(zip(pilots, places, strict=True), 2):
        shared = [pair for pair in ours if pair in theirs]
        if one.sequence != other.sequence and one.seed == other.seed and len(shared) > 2:
            found.append(spearman(one.proxy[[ours[pair] for pair in shared]], other.target[[theirs[pair] for pair in shared]]))
    return float(np.mean(found)) if found else None


def _seed_ceiling(pilots: Sequence[Pilot]) -> float | None:
    pairs = [(a, b) for a, b in combinations(pilots, 2) if a.sequence == b.sequence and a.seed != b.seed]
    return float(np.mean([spearman(a.target, b.target) for a, b in pairs])) if pairs else None
