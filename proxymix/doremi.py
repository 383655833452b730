"""DoReMi on the proxy: one mixture over all domains, by group distributionally robust optimisation (Xie et al. 2023, arXiv 2305.10429).

    uniform run over all domains → reference losses → a run steered by GroupDro → mean of its weights → `static_mixture`

It sees every domain of a sequence at once, later tasks too: no other method may, and its row is marked.
What is ours: domains are reweighted at stage boundaries from mean probe losses, not at every optimizer step from the tokens of the batch;
and a weight acts by how often a domain is drawn, not by a factor on its loss, which is the same in the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.types import Decision, StageBoundary

STEP_SIZE, SMOOTHING = 1.0, 1e-3
"""η and c of the paper."""


@dataclass(frozen=True)
class LearntMixture:
    """What DoReMi found, and what finding it took."""

    weights: Mapping[str, float]
    """Of every domain, positive, summing to 1."""
    reference_losses: Mapping[str, float]
    """Of the uniform run's end, nats per answer token."""
    flops: int
    """Of both runs."""


class GroupDro:
    """Weights that follow what is learnt worst, compared with a reference: α ← (1−c) · norm(α · exp(η · max(0, ℓ − ℓ_ref))) + c/k.

    A function of the boundary alone, since α_t follows from all losses so far.
    """

    name = "group_dro"

    def __init__(self, reference_losses: Mapping[str, float], step_size: float = STEP_SIZE, smoothing: float = SMOOTHING) -> None:
        """Args: `reference_losses` of every domain, nats; `step_size` η > 0; `smoothing` c in (0, 1)."""
        self.reference_losses, self.step_size, self.smoothing = reference_losses, step_size, smoothing

    def decide(self, boundary: StageBoundary) -> Decision:
        """α after as many updates as there were boundaries, this one included."""
        losses = np.array([source.losses for source in boundary.sources])  # [num_domains, num_boundaries]
        reference = np.array([self.reference_losses[name] for name in boundary.names])
        weights = self.weights(losses - reference[:, None])
        return Decision(dict(zip(boundary.names, weights.tolist(), strict=True)), self.name)

    def weights(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        """α `[num_domains]` after updates by `differences` to the reference, nats, `[num_domains, num_updates]`; uniform before the first.

        >>> GroupDro({}, smoothing=0.1).weights(np.log([[3.0], [0.5]])).round(3).tolist()
        [0.725, 0.275]
        """
        count = len(differences)
        alpha = np.full(count, 1.0 / count)
        for excess in np.maximum(0.0, differences).T:
            raised = alpha * np.exp(self.step_size * excess)
            alpha = (1 - self.smoothing) * raised / raised.sum() + self.smoothing / count
        return alpha


def learn_mixture(build: Callable[[], ContinualRun], step_size: float = STEP_SIZE, smoothing: float = SMOOTHING) -> LearntMixture:
    """DoReMi's mixture for the domains of one run: its tasks and anchors, all open from the first step on.

    Each of the two runs takes about as many optimizer steps as `build`'s would, and as many stages.

    Args:
        build: a fresh run of the proxy at its base model, `partial(builder.build, case)`; called twice.
        step_size: η.
        smoothing: c, so that no domain vanishes.
    """
    uniform = all_at_once(build())
    run_continual(uniform, UniformReplay(1.0 - 1.0 / (len(uniform.anchors) + 1)))
    reference = {source.name: source.losses[-1] for source in uniform.observe().sources}
    robust = all_at_once(build())
    records = run_continual(robust, GroupDro(reference, step_size, smoothing))
    weights = {name: float(np.mean([record.decision.weights[name] for record in records])) for name in reference}
    return LearntMixture(weights, reference, uniform.flops + robust.flops)


def all_at_once(run: ContinualRun) -> ContinualRun:
    """The domains of `run` as one long task: the last is current, every other can be replayed from all of its training rows."""
    domains = run.anchors + run.tasks
    opened = [replace(domain, buffer=domain.train) for domain in domains[:-1]]
    stages = run.tuning.stages_per_task * len(run.tasks)
    tuning = run.tuning.model_copy(update={"stages_per_task": stages, "probes_per_boundary": len(domains)})
    steps = max(1, round(float(np.mean(run.steps_per_stage))))
    return ContinualRun(domains[-1:], opened, run.learner, tuning, run.sampler.seed, steps_per_stage=[steps], name=f"{run.name}/doremi")
