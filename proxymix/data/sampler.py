"""The mixture sampler: which example stands at every place of every batch of a stage. Pure numpy.

    (seed, weights so far, optimizer step) → global batch → each rank's slice

It knows nothing of workers: the stream is the same for one and for many, and goes on exactly after a resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from proxymix.mixture import apportion

Places = list[tuple[str, int]]


class MixtureSampler:
    """Draws examples by mixture weights, without repeats until a source is used up, then reshuffled."""

    def __init__(self, seed: int) -> None:
        """Args: `seed` of the whole data stream."""
        self.seed = seed
        self.consumed: dict[str, int] = {}
        """Examples drawn so far from each pool, `name/size` (a source has another pool once its task is over); with the seed, all the state."""

    def draw_stage(
        self, weights: Mapping[str, float], pool_sizes: Mapping[str, int], num_steps: int, batch_size: int
    ) -> tuple[list[Places], dict[str, int]]:
        """Places of `num_steps` batches, `[num_steps][batch_size]` of (source, index), and realised counts per source.

        Counts follow the weights within one sample over the stage, and each source's samples are spread evenly over it.
        The weight of an empty pool goes to the others in proportion (an empty buffer is legal).

        Args:
            weights: over the visible sources; zero is legal.
            pool_sizes: examples that can be drawn from each.
            num_steps: optimizer steps of the stage.
            batch_size: global.

        Raises:
            ValueError: no pool with a positive weight holds an example.
        """
        names = list(weights)
        usable = np.array([weights[name] if pool_sizes[name] else 0.0 for name in names])
        if usable.sum() <= 0:
            raise ValueError(f"weights must be positive for at least one source with examples, got {dict(weights)} over pools {dict(pool_sizes)}")
        counts = dict(zip(names, apportion(usable / usable.sum(), num_steps * batch_size).tolist(), strict=True))
        indices = {name: self._next(name, counts[name], pool_sizes[name]) for name in names}
        # The j-th of n samples stands at (j + ½)/n of the stage; ties go by the order of sources.
        moments = np.concatenate([(np.arange(counts[name]) + 0.5) / max(counts[name], 1) for name in names])
        places: Places = [(name, int(index)) for name in names for index in indices[name]]
        ordered = [places[i] for i in np.argsort(moments, kind="stable")]
        return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)], counts

    def _next(self, name: str, count: int, size: int) -> NDArray[np.int64]:
        """The next `count` indices of pool `name`: successive shuffles of the whole pool, each its own seeded permutation."""
        if not count:
            return np.empty(0, dtype=np.int64)
        pool = f"{name}/{size}"
        start = self.consumed.get(pool, 0)
        self.consumed[pool] = start + count
        first, last = start // size, (start + count - 1) // size
        shuffles = [_shuffle(self.seed, name, epoch, size) for epoch in range(first, last + 1)]
        return np.concatenate(shuffles)[start - first * size :][:count]


@lru_cache(maxsize=32)
def _shuffle(seed: int, name: str, epoch: int, size: int) -> NDArray[np.int64]:
    """Kept, for runs side by side ask for the same ones."""
    # Seeded by name, not by position: what other sources there are changes nothing.
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    shuffled = np.random.default_rng([seed, key, epoch]).permutation(size)
    shuffled.flags.writeable = False
    return shuffled
