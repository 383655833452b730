"""An ablation: the controller is shown losses with noise on them.

StageBoundary → every reading × exp(σ·ε), ε of its place alone → controller.decide
"""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import numpy as np

from proxymix.types import Controller, Decision, SourceReading, StageBoundary


class NoisyReadings:
    """What was read once has one noise for good, wherever it appears: in the history, carried over, or as the reference."""

    def __init__(self, controller: Controller, sigma: float, seed: int) -> None:
        """Args: `sigma` standard deviation of the logarithm's noise, 0.2 for about 20 %; `seed` of the noise."""
        self.controller, self.sigma, self.seed, self.name = controller, sigma, seed, controller.name

    def decide(self, boundary: StageBoundary) -> Decision:
        """The controller's mixture for the noisy boundary."""
        return self.controller.decide(replace(boundary, sources=tuple(self._noisy(source) for source in boundary.sources)))

    def _noisy(self, source: SourceReading) -> SourceReading:
        # A carried-over reading is equal to the one before to the last bit; two readings hardly ever are.
        factors: dict[float, float] = {}
        for place, loss in enumerate(source.losses):
            factors.setdefault(loss, self._factor(source.name, place))
        reference = source.reference_loss
        if reference is not None:
            reference *= factors.get(reference, 1.0)
        return replace(source, losses=tuple(loss * factors[loss] for loss in source.losses), reference_loss=reference)

    def _factor(self, name: str, place: int) -> float:
        rng = np.random.default_rng([self.seed, crc32(name.encode()), place])
        return float(np.exp(self.sigma * rng.standard_normal()))
