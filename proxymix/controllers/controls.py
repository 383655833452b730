"""Controls: what a learnt controller must beat for the claim that it learnt, and that it looks.

FrozenController → ShuffledObservations            it may not know which source is which
seed → untrained → FrozenController                it has learnt nothing
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.feature_groups import Groups
from proxymix.types import Controller, Decision, StageBoundary


class ShuffledObservations:
    """Shows a controller every source under the name of another one of its role, drawn anew at every decision.

    A reading changes its name and nothing else (loss history, reference and age stay together), so each boundary looks like one that can
    happen. What is pooled over sources stays, so an equivariant controller still chooses *how much* as before and only *which* is lost;
    its open-loop schedule is the control of *how much*.
    """

    def __init__(self, controller: Controller, seed: int, name: str = "shuffled") -> None:
        """Args: `seed` of the permutations, which depend on it and on the place in the run alone; `name` as it stands in tables."""
        self.controller, self.seed, self.name = controller, seed, name

    def decide(self, boundary: StageBoundary) -> Decision:
        """The controller's mixture for the shuffled boundary."""
        rng = np.random.default_rng([self.seed, boundary.task_index, boundary.stage_index])
        shown = list(boundary.sources)
        for role in ("anchor", "past"):
            places = [index for index, source in enumerate(boundary.sources) if source.role == role]
            for place, other in zip(places, rng.permutation(places), strict=True):
                shown[place] = replace(boundary.sources[other], name=boundary.sources[place].name)
        return replace(self.controller.decide(replace(boundary, sources=tuple(shown))), controller=self.name)


def untrained(architecture: str, hidden_units: int, max_sources: int, seed: int, name: str = "untrained", without: Groups = ()) -> FrozenController:
    """The controller that training starts from, frozen at once; arguments as `initial_parameters` and `build_policy` take them."""
    parameters = initial_parameters(architecture, hidden_units, max_sources, np.random.default_rng(seed))
    return FrozenController(build_policy(architecture, parameters, without=without), {"name": name})
