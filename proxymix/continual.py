"""The one stage loop. Proxy episodes, the target on Ray Train, every baseline and the tests' fakes all go through it.

    run.observe() → controller.decide(boundary) → run.advance(decision) → journal          until run.done

The Gymnasium environment's `step` *is* `advance`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from proxymix.config import TuningConfig
from proxymix.data.encoding import Batch, EncodedSource, EncodedSplit, planned_batches, stacked_shape
from proxymix.data.sampler import MixtureSampler, Places
from proxymix.errors import NonFiniteLossError, UserError
from proxymix.learners.interface import Probes, StageLearner
from proxymix.mixture import checked_weights
from proxymix.probing import Readings
from proxymix.types import Controller, Decision, Role, SourceReading, StageBoundary, StageRecord

StageInProgress = Generator[Batch | Probes, Any, StageRecord]
"""Asks for what only a model can give: the loss of an optimizer step on a batch (float), or the losses of probes (a dict)."""


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
        self.training_flops = self.validation_flops = 0
        self._recorded_flops = (0, 0)

    @property
    def flops(self) -> int:
        """Operations so far, training and validation, as of this run alone: what others beside it are padded to is not in it."""
        return self.training_flops + self.validation_flops

    @property
    def done(self) -> bool:
        """Whether every task has been tuned on."""
        return self.task_index == len(self.tasks)

    @property
    def visible(self) -> list[EncodedSource]:
        """Anchors, then the tasks that have come so far."""
        return self.anchors + self.tasks[: self.task_index + 1]

    def begin(self, others: Sequence[ContinualRun] = ()) -> None:
        """Reads the first losses, for `others` too: of the same case, on the same learner, all at the base model. `observe` does it for one alone."""
        probes = self._due(always=())
        losses = self.learner.losses_of_all(probes)[0]
        for run in (self, *others):
            run._keep(probes, losses)
            run.reference_losses = {source.name: losses[source.name] for source in self.anchors}

    def observe(self) -> StageBoundary:
        """All that may be known now. After the last task: the final readings, with the last task still current."""
        if not self.readings.histories:
            self.begin()
        current = self.tasks[min(self.task_index, len(self.tasks) - 1)].name
        readings = [self._reading(source.name, current) for source in self.visible]
        stage = self.stage_index if not self.done else self.tuning.stages_per_task - 1
        return StageBoundary(min(self.task_index, len(self.tasks) - 1), stage, self.tuning.stages_per_task, tuple(readings))

    def advance(self, decision: Decision) -> StageRecord:
        """Tunes one stage with the decided mixture, then reads the losses of the next boundary.

        Raises:
            ValueError: the run is done, or the weights are no mixture over exactly the visible sources.
        """
        return advance_together([self], [decision])[0]

    def stage(self, decision: Decision) -> StageInProgress:
        """`advance` as a coroutine: it asks for losses, and whoever drives it computes them (`advance_together`)."""
        if self.done:
            raise ValueError("run: every task is finished; build a new one to go on")
        boundary = self.observe()
        weights = checked_weights(decision.weights, boundary.names)
        started = time.perf_counter()
        steps = self.steps_per_stage[self.task_index]
        if self.stage_index == 0:
            self.learner.begin_task(steps * self.tuning.stages_per_task)
        pools = {s.name: s.train if s.name == boundary.current.name else s.buffer for s in self.visible}
        plan, counts = self.sampler.draw_stage(weights, {n: len(p) for n, p in pools.items()}, steps, self.tuning.batch_size)
        batches, num_tokens = planned_batches(plan, pools)
        losses = []
        for batch, places in zip(batches, plan, strict=True):
            try:
                losses.append((yield batch))
            except NonFiniteLossError as error:
                raise self._located(error, places) from error
            self.training_flops += self.learner.shape.training_flops(batch.shape)
        trained = time.perf_counter()
        position = (self.task_index, self.stage_index)
        num_validation_tokens = yield from self._move_on(boundary.current.name, steps)
        recorded, self._recorded_flops = self._recorded_flops, (self.training_flops, self.validation_flops)
        return StageRecord(
            request_id=f"{self.name}/task{position[0]}/stage{position[1]}",
            boundary=boundary,
            decision=decision,
            counts=counts,
            training_loss=float(np.mean(losses)),
            num_optimizer_steps=steps,
            num_tokens=num_tokens,
            num_validation_tokens=num_validation_tokens,
            training_flops=self.training_flops - recorded[0],
            validation_flops=self.validation_flops - recorded[1],
            seconds={"train": trained - started, "validate": time.perf_counter() - trained},
        )

    @property
    def validation_splits(self) -> dict[str, EncodedSplit]:
        """Of every anchor and task, future ones too: for diagnostics and for rewards after the end only."""
        return {source.name: source.validation for source in self.anchors + self.tasks}

    def validation_accuracies(self) -> dict[str, float]:
        """Share of validation rows answered right, per anchor and task."""
        self.count_reading(self.validation_splits)
        return mean_accuracies(self.learner.accuracies_of_all(self.validation_splits)[0])

    def count_reading(self, probes: Probes) -> None:
        """Adds what reading `probes` together takes; for whoever reads them for this run."""
        if probes:
            self.validation_flops += self.learner.shape.forward_flops(stacked_shape(list(probes.values())))

    @property
    def safety_anchor(self) -> EncodedSource | None:
        """The first anchor with harmful and harmless rows."""
        return next((source for source in self.anchors if source.harmful is not None), None)

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

    def _move_on(self, current: str, steps: int) -> Generator[Probes, dict[str, float], int]:
        """To the next boundary, whose losses are read; a task's last reading becomes its reference. Returns the tokens read."""
        place, last_step = self._place, (self.stage_index + 1) * steps - 1
        self.stage_index += 1
        task_over = self.stage_index == self.tuning.stages_per_task
        if task_over:
            self.task_index, self.stage_index = self.task_index + 1, 0
        # What was trained is read, and so is a task that has just come: the one because it changed most, the other for the first time.
        probes = self._due(always=(current,))
        self._keep(probes, (yield probes), last_step, place)
        if task_over:
            self.reference_losses[current] = self.readings.histories[current][-1]
        return sum(probe.num_tokens for probe in probes.values())

    def _located(self, error: NonFiniteLossError, places: Places) -> NonFiniteLossError:
        """`error` with the task, the stage and the source it happened in."""
        sources = sorted({name for name, _ in places}) if error.row is None else [places[error.row][0]]
        place = f"{self._place}, on rows of {', '.join(sources)}"
        return NonFiniteLossError(error.what, error.step, place, row=error.row, replica=error.replica)

    @property
    def _place(self) -> str:
        return f"task {self.task_index} ({self.tasks[self.task_index].name}), stage {self.stage_index}"

    def _due(self, always: Sequence[str]) -> dict[str, EncodedSplit]:
        """The probes to read at this boundary, `always` in any case."""
        visible = {source.name: source.probe for source in self.visible}
        return {name: visible[name] for name in self.readings.due(list(visible), always, self.tuning.probe_budget)}

    def _keep(self, probes: Probes, losses: Mapping[str, float], step: int = 0, place: str | None = None) -> None:
        assert probes.keys() == losses.keys()
        for name, loss in losses.items():
            if not math.isfinite(loss):
                what = f"validation loss on rows of {name} became {loss}"
                untuned = UserError(f"model: {what} before any step; mend its weights, or set precision to fp32")
                raise untuned if place is None else NonFiniteLossError(what, step, place)
        self.count_reading(probes)
        self.readings.add([source.name for source in self.visible], losses)

    def _reading(self, name: str, current: str) -> SourceReading:
        role: Role = "current" if name == current else "anchor" if any(a.name == name for a in self.anchors) else "past"
        reference = None if role == "current" else self.reference_losses[name]
        readings = self.readings
        return SourceReading(name, role, tuple(readings.histories[name]), reference, readings.ages[name], readings.intervals[name])


def advance_together(runs: Sequence[ContinualRun], decisions: Sequence[Decision]) -> list[StageRecord]:
    """One stage of every run, on the replicas of the one learner they share; all stand at the same place of the same case.

    The seconds of a record are those of all of them over their number.
    """
    learner = runs[0].learner
    stages = [run.stage(decision) for run, decision in zip(runs, decisions, strict=True)]
    answers: Sequence[Any] = [None] * len(runs)
    while True:
        asked: list[Any] = []
        records: list[StageRecord] = []
        for stage, answer in zip(stages, answers, strict=True):
            try:
                asked.append(stage.send(answer))
            except StopIteration as end:
                records.append(end.value)
        if records:
            return [replace(record, seconds={name: value / len(runs) for name, value in record.seconds.items()}) for record in records]
        batches = [question for question in asked if isinstance(question, Batch)]
        # Equal places ask equal things: all for a step, or all for the same probes.
        try:
            answers = learner.train_steps(batches) if batches else learner.losses_of_all(asked[0])
        except NonFiniteLossError as error:
            stages[error.replica].throw(error)  # It knows where it stands, and raises.


def run_continual(run: ContinualRun, controller: Controller, journal: Journal | None = None) -> list[StageRecord]:
    """From wherever `run` stands to its end: observe → decide → advance → journal.

    Returns:
        The records of the stages tuned here (a resumed run's earlier ones are in its journal).
    """
    records = []
    while not run.done:
        task_index = run.task_index
        began = time.process_time()
        boundary = run.observe()
        asked = time.perf_counter()
        decision = controller.decide(boundary)
        decided = time.perf_counter()
        record = run.advance(decision)
        record = replace(record, seconds={**record.seconds, "decide": decided - asked, "cpu": time.process_time() - began})
        records.append(record)
        if journal is not None:
            journal.stage_finished(run, record)
            if run.task_index != task_index:
                journal.task_finished(run, task_index)
    return records


def mean_accuracies(right: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of right rows, per source."""
    return {name: float(rows.double().mean()) for name, rows in right.items()}
