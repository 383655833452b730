"""Search by whole runs: what a learner's budget finds when nothing of a run is used but its score.

    Search asks (candidates, which case) → score_together → Search is told → … → the vector found → Space → controller

All candidates of a question run on one case and its one data stream, so what the case adds is the same for all of them: they are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from proxymix.cases import Case, CaseBuilder
from proxymix.continual import advance_together, mean_accuracies
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.controllers.schedules import schedule
from proxymix.reward import final_score
from proxymix.types import Controller

FloatArray = NDArray[np.float64]
Search = Generator[tuple[FloatArray, int], FloatArray, FloatArray]
"""Asks for the scores `[num_candidates]` of candidates `[num_candidates, size]` on the case of that index; returns what it found, `[size]`."""

ELITE, NARROWING, LEAST_SPREAD = 0.25, 0.85, 0.3
"""Of the cross-entropy method: the share that is kept, how its noise shrinks an iteration, and the least of it."""
USUAL_SHARE = -0.7
"""Logit of a replay share of one third, where a search for schedules starts."""
NUM_RUNGS = 4


class Space(Protocol):
    """What vectors mean."""

    def controller(self, vector: FloatArray) -> Controller:
        """The controller that `vector` stands for."""
        ...


@dataclass(frozen=True)
class ScheduleSpace:
    """Replay shares of every stage as logits; with `by_role`, the log of an anchor's part beside a past task's, a number a task, on top."""

    num_tasks: int
    num_stages: int
    by_role: bool = False

    @property
    def start(self) -> FloatArray:
        """A third everywhere, evenly split."""
        return np.repeat([USUAL_SHARE, 0.0], [self.num_tasks * self.num_stages, self.num_tasks * self.by_role])

    def shares(self, vector: FloatArray) -> list[list[float]]:
        """In [0, 1], `[num_tasks][num_stages]`."""
        logits = vector[: self.num_tasks * self.num_stages].reshape(self.num_tasks, self.num_stages)
        return [[float(share) for share in row] for row in 1 / (1 + np.exp(-logits))]

    def anchor_scores(self, vector: FloatArray) -> list[float]:
        """A task's score of every anchor, where a past task has 1, `[num_tasks]`; empty unless `by_role`."""
        return [float(score) for score in np.exp(vector[self.num_tasks * self.num_stages :])]

    def controller(self, vector: FloatArray) -> Controller:
        """The schedule."""
        return schedule(self.shares(vector), anchor_scores=self.anchor_scores(vector))


@dataclass(frozen=True)
class PolicySpace:
    """Parameters of a learnt controller, one after another in the order of their names."""

    architecture: str
    hidden_units: int
    max_sources: int
    seed: int
    """Of the untrained ones."""

    @property
    def start(self) -> FloatArray:
        """Where training starts too."""
        return np.concatenate([value.ravel() for _, value in sorted(self._untrained().items())])

    def parameters(self, vector: FloatArray) -> dict[str, FloatArray]:
        """As `build_policy` takes them."""
        named = sorted(self._untrained().items())
        parts = np.split(vector, np.cumsum([value.size for _, value in named])[:-1])
        return {name: part.reshape(value.shape) for (name, value), part in zip(named, parts, strict=True)}

    def controller(self, vector: FloatArray) -> Controller:
        """The policy's mean action."""
        return FrozenController(build_policy(self.architecture, self.parameters(vector)), {"name": "candidate"})

    def _untrained(self) -> dict[str, FloatArray]:
        return initial_parameters(self.architecture, self.hidden_units, self.max_sources, np.random.default_rng(self.seed))


def cross_entropy(
    start: FloatArray,
    num_iterations: int,
    population: int,
    average_last: float,
    rng: np.random.Generator,
    used: Callable[[int], int] | None = None,
) -> Search:
    """The cross-entropy method: an iteration a case, the next one drawn around the mean of the best quarter.

    Args:
        start: mean of the first population.
        num_iterations: at least 1.
        population: candidates an iteration, at least 2.
        average_last: what is found is the mean of the means of this last share of the iterations, as a frozen policy is of its parameters.
        rng: of the noise.
        used: how many entries, from the first, the case of that index has a use for; the others learn nothing from it. None: all.
    """
    mean, spread, means = start, np.ones_like(start), []
    for iteration in range(num_iterations):
        candidates = mean + spread * rng.normal(size=(population, len(mean)))
        scores = yield candidates, iteration
        best = np.argsort(-scores, kind="stable")[: max(1, round(ELITE * population))]
        learns = np.arange(len(mean)) < (used(iteration) if used else len(mean))
        mean = np.where(learns, candidates[best].mean(axis=0), mean)
        spread = np.where(learns, np.maximum(LEAST_SPREAD, NARROWING * spread), spread)
        means.append(mean)
    return np.asarray(np.mean(means[-max(1, round(average_last * num_iterations)) :], axis=0))


def best_ever(search: Search) -> Search:
    """`search`, but what is found is the best candidate it ever asked for: where all questions are about one case, and scores repeat."""
    found: tuple[float, FloatArray] | None = None
    try:
        question = next(search)
        while True:
            scores = yield question
            best = int(scores.argmax())
            if found is None or scores[best] > found[0]:
                found = float(scores[best]), question[0][best]
            question = search.send(scores)
    except StopIteration as end:
        return found[1] if found else np.asarray(end.value)


def successive_halving(start: FloatArray, sigma: float, num_runs: int, rng: np.random.Generator) -> Search:
    """Random search: `start` and noise around it; the better half goes on to twice as many new cases, until one is left.

    Each of up to four rungs takes a quarter of `num_runs`. A candidate counts by its mean over all cases so far, the same for all that are left.

    Args:
        start: first candidate.
        sigma: standard deviation of the noise.
        num_runs: most runs in all, at least 1.
        rng: of the noise.
    """
    count = max(1, num_runs // NUM_RUNGS)
    left = start + sigma * rng.normal(size=(count, len(start))) * (np.arange(count) > 0)[:, None]
    totals, case_index = np.zeros(count), 0
    for rung in range(NUM_RUNGS):
        for _ in range(2**rung):
            totals = totals + (yield left, case_index)
            case_index += 1
        kept = np.argsort(-totals, kind="stable")[: max(1, len(left) // 2)]
        left, totals = left[kept], totals[kept]
        if len(left) == 1:
            break
    return np.asarray(left[0])


def score_together(builder: CaseBuilder, case: Case, controllers: Sequence[Controller]) -> tuple[list[float], int]:
    """J on validation rows at the end of each controller's run of `case`, and the operations of all these runs.

    They go side by side on the learner's replicas. Idle replicas repeat the last controller, and are in no bill.

    Args:
        builder: with at least as many replicas as there are controllers.
        case: for all of them.
        controllers: at least one.
    """
    idle = builder.learner.model.num_replicas - len(controllers)
    everyone = [*controllers, *[controllers[-1]] * idle]
    runs = [builder.build(case) for _ in everyone]
    runs[0].begin(runs[1:])
    while not runs[0].done:
        advance_together(runs, [controller.decide(run.observe()) for controller, run in zip(everyone, runs, strict=True)])
    splits = runs[0].validation_splits
    right = builder.learner.accuracies_of_all(splits)
    for run in runs:
        run.count_reading(splits)
    counted = list(zip(runs, right, strict=True))[: len(controllers)]
    return [final_score(mean_accuracies(answers)) for _, answers in counted], sum(run.flops for run, _ in counted)
