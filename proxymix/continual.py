"""The one stage loop. Proxy episodes, the target on Ray Train, every baseline and the tests' fakes all go through it.

    run.observe() → controller.decide(boundary) → run.advance(decision) → journal          until run.done

The Gymnasium environment's `step` *is* `advance`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from proxymix.config import TuningConfig
from proxymix.data.encoding import Batch, EncodedSource, EncodedSplit, gather
from proxymix.data.sampler import MixtureSampler, Places
from proxymix.probing import Readings
from proxymix.reward import safety_score
from proxymix.types import Controller, Decision, Role, SourceReading, StageBoundary, StageRecord


class StageLearner(Protocol):
    """What the loop needs of a model being tuned (`proxymix.learners.Learner`)."""

    def begin_task(self, num_optimizer_steps: int) -> None:
        """A fresh optimizer and schedule."""
        ...

    def train_step(self, batch: Batch) -> float:
        """One optimizer step on a global batch; returns the mean loss."""
        ...

    def losses(self, probes: Mapping[str, EncodedSplit]) -> dict[str, float]:
        """Mean loss of every probe, nats per answer token."""
        ...

    def accuracies(self, probes: Mapping[str, EncodedSplit]) -> dict[str, Tensor]:
        """Which rows would be answered right."""
        ...


class Journal(Protocol):
    """Where a run leaves its traces."""

    def stage_finished(self, run: ContinualRun, record: StageRecord) -> None:
        """After every stage; a resumable journal saves the run's state here."""
        ...

    def task_finished(self, run: ContinualRun, task_index: int) -> None:
        """After the last stage of a task."""
        ...


class ContinualRun:
    """A model's way through a sequence of tasks, one stage at a time."""

    def __init__(
        self,
        tasks: Sequence[EncodedSource],
        anchors: Sequence[EncodedSource],
        learner: StageLearner,
        tuning: TuningConfig,
        seed: int,
        *,
        steps_per_stage: Sequence[int] | None = None,
        name: str = "run",
    ) -> None:
        """Nothing is computed yet; the first `observe` reads the first losses.

        Args:
            tasks: in order; their names, and the anchors', are unique.
            anchors: visible and replayable from the first task on.
            learner: stands at the base model.
            tuning: stages, steps and batch size.
            seed: of the data stream.
            steps_per_stage: per task, `[num_tasks]`; default `tuning.steps_per_stage` for all.
            name: prefix of request ids.

        Raises:
            ValueError: two sources share a name.
        """
        names = [source.name for source in (*anchors, *tasks)]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks and anchors must have unique names, got {names}")
        self.tasks, self.anchors, self.learner, self.tuning, self.name = list(tasks), list(anchors), learner, tuning, name
        self.steps_per_stage = list(steps_per_stage or [tuning.steps_per_stage] * len(tasks))
        self.sampler = MixtureSampler(seed)
        self.task_index, self.stage_index = 0, 0
        self.readings = Readings()
        self.reference_losses: dict[str, float] = {}

    @property
    def done(self) -> bool:
        """Whether every task has been tuned on."""
        return self.task_index == len(self.tasks)

    @property
    def visible(self) -> list[EncodedSource]:
        """Anchors, then the tasks that have come so far."""
        return self.anchors + self.tasks[: self.task_index + 1]

    def observe(self) -> StageBoundary:
        """All that may be known now. After the last task: the final readings, with the last task still current."""
        if not self.readings.histories:
            self._read_losses(always=())
            self.reference_losses = {source.name: self.readings.histories[source.name][-1] for source in self.anchors}
        current = self.tasks[min(self.task_index, len(self.tasks) - 1)].name
        readings = [self._reading(source.name, current) for source in self.visible]
        stage = self.stage_index if not self.done else self.tuning.stages_per_task - 1
        return StageBoundary(min(self.task_index, len(self.tasks) - 1), stage, self.tuning.stages_per_task, tuple(readings))

    def advance(self, decision: Decision) -> StageRecord:
        """Tunes one stage with the decided mixture, then reads the losses of the next boundary.

        Raises:
            ValueError: the run is done, or the weights are no mixture over exactly the visible sources.
        """
        if self.done:
            raise ValueError("run: every task is finished; build a new one to go on")
        boundary = self.observe()
        weights = _checked_weights(decision.weights, boundary.names)
        started = time.perf_counter()
        steps = self.steps_per_stage[self.task_index]
        if self.stage_index == 0:
            self.learner.begin_task(steps * self.tuning.stages_per_task)
        pools = {s.name: s.train if s.name == boundary.current.name else s.buffer for s in self.visible}
        plan, counts = self.sampler.draw_stage(weights, {n: len(p) for n, p in pools.items()}, steps, self.tuning.batch_size)
        losses, num_tokens = self._train(plan, pools)
        trained = time.perf_counter()
        position = (self.task_index, self.stage_index)
        num_validation_tokens = self._move_on(boundary.current.name)
        return StageRecord(
            request_id=f"{self.name}/task{position[0]}/stage{position[1]}",
            boundary=boundary,
            decision=decision,
            counts=counts,
            training_loss=float(np.mean(losses)),
            num_optimizer_steps=steps,
            num_tokens=num_tokens,
            num_validation_tokens=num_validation_tokens,
            seconds={"train": trained - started, "validate": time.perf_counter() - trained},
        )

    def validation_accuracies(self) -> dict[str, float]:
        """Share of validation rows answered right, per task (future ones too: diagnostics and rewards after the end only) and anchor."""
        right = self.learner.accuracies({source.name: source.validation for source in self.anchors + self.tasks})
        return {name: float(rows.double().mean()) for name, rows in right.items()}

    def validation_safety(self, gamma: float) -> float | None:
        """SS (Eq. 7) of the first safety anchor's validation rows, teacher-forced; None without one."""
        for source in self.anchors:
            if source.harmful is not None:
                right = self.learner.accuracies({source.name: source.validation})[source.name].double()
                return safety_score(float(right[source.harmful].mean()), float(right[~source.harmful].mean()), gamma)
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything but the learner's tensors, as JSON values."""
        return {
            "task_index": self.task_index,
            "stage_index": self.stage_index,
            "readings": self.readings.state_dict(),
            "reference_losses": dict(self.reference_losses),
            "consumed": dict(self.sampler.consumed),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; the learner's own state is loaded apart."""
        self.task_index, self.stage_index = state["task_index"], state["stage_index"]
        self.readings.load_state_dict(state["readings"])
        self.reference_losses = dict(state["reference_losses"])
        self.sampler.consumed = dict(state["consumed"])

    def _train(self, plan: Sequence[Places], pools: Mapping[str, EncodedSplit]) -> tuple[list[float], int]:
        """One optimizer step per planned batch: losses, and tokens seen."""
        order = {name: index for index, name in enumerate(pools)}
        splits, losses, num_tokens = list(pools.values()), [], 0
        for places in plan:
            located = [(order[name], row) for name, row in places]
            losses.append(self.learner.train_step(gather(splits, located)))
            num_tokens += sum(int(splits[s].lengths[row]) for s, row in located)
        return losses, num_tokens

    def _move_on(self, current: str) -> int:
        """To the next boundary, whose losses are read; a task's last reading becomes its reference. Returns the tokens read."""
        self.stage_index += 1
        task_over = self.stage_index == self.tuning.stages_per_task
        if task_over:
            self.task_index, self.stage_index = self.task_index + 1, 0
        # What was trained is read, and so is a task that has just come: the one because it changed most, the other for the first time.
        num_tokens = self._read_losses(always=(current,))
        if task_over:
            self.reference_losses[current] = self.readings.histories[current][-1]
        return num_tokens

    def _read_losses(self, always: Sequence[str]) -> int:
        """Reads what is due at this boundary, `always` in any case; returns the tokens that took."""
        visible = {source.name: source.probe for source in self.visible}
        due = self.readings.due(list(visible), always, self.tuning.probe_budget)
        self.readings.add(list(visible), self.learner.losses({name: visible[name] for name in due}))
        return sum(visible[name].num_tokens for name in due)

    def _reading(self, name: str, current: str) -> SourceReading:
        role: Role = "current" if name == current else "anchor" if any(a.name == name for a in self.anchors) else "past"
        reference = None if role == "current" else self.reference_losses[name]
        readings = self.readings
        return SourceReading(name, role, tuple(readings.histories[name]), reference, readings.ages[name], readings.intervals[name])


def run_continual(run: ContinualRun, controller: Controller, journal: Journal | None = None) -> list[StageRecord]:
    """From wherever `run` stands to its end: observe → decide → advance → journal.

    Returns:
        The records of the stages tuned here (a resumed run's earlier ones are in its journal).
    """
    records = []
    while not run.done:
        task_index = run.task_index
        boundary = run.observe()
        asked = time.perf_counter()
        decision = controller.decide(boundary)
        decided = time.perf_counter()
        record = run.advance(decision)
        record = replace(record, seconds={**record.seconds, "decide": decided - asked})
        records.append(record)
        if journal is not None:
            journal.stage_finished(run, record)
            if run.task_index != task_index:
                journal.task_finished(run, task_index)
    return records


def _checked_weights(weights: Mapping[str, float], visible: Sequence[str]) -> dict[str, float]:
    if set(weights) != set(visible):
        raise ValueError(f"weights must name exactly the visible sources {list(visible)}, got {list(weights)}")
    values = [float(weights[name]) for name in visible]
    if not all(np.isfinite(values)) or min(values) < 0 or abs(sum(values) - 1) > 1e-6:
        raise ValueError(
            f"mixture_weights must be non-negative and sum to 1 over visible sources, got {dict(weights)}; pass logits to masked_mixture"
        )
    return dict(zip(visible, values, strict=True))
