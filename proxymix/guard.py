"""The guard at run time: whether the target's losses rise in the order that the proxy's rose in, in like states.

    boundary → the state and the rises of every stage so far → rises expected of the proxy → ρ over a window → alarm → declared fallback

Mirroring is checked once, before the target is tuned (`proxymix.mirroring`); this goes on while it is. All of it follows from the loss histories
in the boundary: the guard keeps no state, so a run that was killed and resumed decides what an undisturbed one does. Pure numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxymix.mirroring import spearman
from proxymix.observation import SOURCE_FEATURES, source_features
from proxymix.types import Controller, Decision, Role, SourceReading, StageBoundary

FloatArray = NDArray[np.float64]

_OWN = (*SOURCE_FEATURES, "position")
FEATURES = ("bias", *_OWN, "is_current", *(f"current.{name}" for name in _OWN))
"""What a rise is expected from: a source's own features and the place in the task, and all of them once more for the current task."""
_LOSS_FLOOR = 0.05
"""Nats. Losses below it are as good as learnt; keeps the logarithms finite."""
_RIDGE = 1.0
"""Weight of "no effect", in readings, on features scaled to their spread."""


@dataclass(frozen=True)
class StageRises:
    """What one stage did to the losses of the sources that were read after it."""

    task_index: int
    stage_index: int
    features: FloatArray
    """`[num_read, len(FEATURES)]`, of the state before the stage."""
    rises: FloatArray
    """log of (loss after + 0.05) over (loss at the reading before + 0.05), `[num_read]`: relative, because models differ in level."""


@dataclass(frozen=True)
class Agreement:
    """How the rises of a window's stages were ranked by the target and by what the proxy showed."""

    task_index: int
    stage_index: int
    """Of the window's last stage."""
    num_stages: int
    num_readings: int
    rho: float
    """Spearman's, over all readings of the window."""


@dataclass(frozen=True)
class Guard:
    """What the proxy showed, and how far a target may part from it."""

    gains: tuple[float, ...]
    """Expected rise per unit of each of `FEATURES`."""
    window: int
    """Stages compared at a time."""
    min_readings: int
    """A window with fewer says nothing."""
    bound: float
    """ρ below it is an alarm."""
    held_out_minima: tuple[float, ...] = ()
    """The lowest ρ of each of the proxy's runs under the gains fitted to all others; what the bound was taken from."""

    def agreements(self, boundary: StageBoundary) -> list[Agreement]:
        """Of every window that ended at `boundary` or before it and has enough readings, in order."""
        stages, found = stage_rises(boundary), []
        for end in range(1, len(stages) + 1):
            window = stages[max(0, end - self.window) : end]
            rises = np.concatenate([stage.rises for stage in window])
            if len(rises) >= self.min_readings:
                expected = np.concatenate([stage.features for stage in window]) @ np.array(self.gains)
                last = window[-1]
                found.append(Agreement(last.task_index, last.stage_index, len(window), len(rises), spearman(rises, expected)))
        return found

    def alarm(self, boundary: StageBoundary) -> str | None:
        """Why the controller must not be followed any longer; None while it may.

        Once there is a reason it stays the same for the rest of the run: the first window below the bound remains part of the history.
        """
        for at in self.agreements(boundary):
            if at.rho < self.bound:
                return (
                    f"guard: after stage {at.stage_index} of task {at.task_index} losses rose in another order than the proxy's in like states, "
                    f"rank correlation {at.rho:.2f} over {at.num_readings} readings of {at.num_stages} stages, below the bound {self.bound:.2f}"
                )
        return None

    def to_json(self) -> dict[str, Any]:
        """As JSON values, with the names of what the gains belong to."""
        return {"features": list(FEATURES), **asdict(self)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Guard:
        """The inverse of `to_json`.

        Raises:
            ValueError: it was fitted to other features.
        """
        if tree["features"] != list(FEATURES):
            raise ValueError(f"features must be {list(FEATURES)}, got {tree['features']}; calibrate the guard anew")
        return cls(tuple(tree["gains"]), tree["window"], tree["min_readings"], tree["bound"], tuple(tree["held_out_minima"]))


class GuardedController:
    """Asks a controller until the guard's alarm, and the declared fallback from then on; every such decision says why."""

    def __init__(self, controller: Controller, guard: Guard, fallback: Controller) -> None:
        """Args: `fallback` decides after an alarm."""
        self.controller, self.guard, self.fallback, self.name = controller, guard, fallback, controller.name

    def decide(self, boundary: StageBoundary) -> Decision:
        """The controller's mixture, or the fallback's, marked."""
        alarm = self.guard.alarm(boundary)
        return self.controller.decide(boundary) if alarm is None else replace(self.fallback.decide(boundary), fallback=alarm)

    def close(self) -> None:
        """Closes the controller if it can be closed."""
        close = getattr(self.controller, "close", None)
        if close is not None:
            close()


def fit_guard(runs: Sequence[StageBoundary], *, window: int, min_readings: int, bound: float | None = None, false_alarms: float = 0.05) -> Guard:
    """The guard that the proxy's own runs, steered by the controller to be guarded, call for.

    Args:
        runs: the last boundary of each; it holds all losses of the run.
        window: stages compared at a time.
        min_readings: fewer in a window say nothing.
        bound: on ρ; None: so low that at most the share `false_alarms` of the runs would have raised one, each judged by what the others showed.
        false_alarms: in [0, 1).

    Raises:
        ValueError: fewer than two runs, or none with a window of `min_readings`.
    """
    if len(runs) < 2:
        raise ValueError(f"runs must be at least 2, got {len(runs)}: each is judged by what the others showed")
    stages = [stage_rises(run) for run in runs]
    minima = []
    for index, run in enumerate(runs):
        gains = _fitted([stage for other, rises in enumerate(stages) if other != index for stage in rises])
        if agreements := Guard(gains, window, min_readings, -1.0).agreements(run):
            minima.append(min(at.rho for at in agreements))
    if not minima:
        raise ValueError(f"min_readings must be reached within {window} stages of some run, got {min_readings}; lower it or widen the window")
    if bound is None:
        bound = float(np.quantile(minima, false_alarms, method="lower"))
    return Guard(_fitted([stage for rises in stages for stage in rises]), window, min_readings, bound, tuple(minima))


def stage_rises(boundary: StageBoundary) -> list[StageRises]:
    """Every stage before `boundary`, in order."""
    states = [earlier_boundary(boundary, time) for time in range(_num_boundaries(boundary))]
    return [_rises(before, after) for before, after in pairwise(states)]


def earlier_boundary(boundary: StageBoundary, time: int) -> StageBoundary:
    """The boundary that the run stood at `time` boundaries after its start, `time` ≥ 0; all it takes is in `boundary`, a later one of the run."""
    total, num_stages = _num_boundaries(boundary), boundary.num_stages
    readings = []
    for source in boundary.sources:
        seen = time + 1 - (total - len(source.losses))  # Readings it had then.
        if seen > 0:
            readings.append(_reading(source, seen, num_stages))
    return StageBoundary(time // num_stages, time % num_stages, num_stages, tuple(readings))


def _rises(before: StageBoundary, after: StageBoundary) -> StageRises:
    own = np.column_stack([source_features(before), np.full(len(before.sources), before.stage_index / before.num_stages)])  # [num_sources, len(_OWN)]
    current = np.array([[float(source.role == "current")] for source in before.sources])
    features = np.column_stack([np.ones(len(own)), own, current, current * own])
    now = {source.name: source for source in after.sources}
    read = [index for index, source in enumerate(before.sources) if now[source.name].age == 0]
    levels = [[now[s.name].losses[-1], s.losses[-1]] for s in before.sources]
    logs = np.log(np.array(levels) + _LOSS_FLOOR)  # [num_sources, 2]
    return StageRises(before.task_index, before.stage_index, features[read], logs[read, 0] - logs[read, 1])


def _fitted(stages: Sequence[StageRises]) -> tuple[float, ...]:
    """Ridge regression of rises on features."""
    features, rises = np.concatenate([stage.features for stage in stages]), np.concatenate([stage.rises for stage in stages])
    spread = features.std(axis=0)
    spread[spread < 1e-9] = 1.0  # The bias, and what never varies.
    scaled = features / spread
    gains = np.linalg.solve(scaled.T @ scaled + _RIDGE * np.eye(len(spread)), scaled.T @ rises) / spread
    return tuple(float(gain) for gain in gains)


def _num_boundaries(boundary: StageBoundary) -> int:
    """Up to and with this one. The oldest source has been visible from the start."""
    return max(len(source.losses) for source in boundary.sources)


def _reading(source: SourceReading, seen: int, num_stages: int) -> SourceReading:
    """`source` when it had `seen` losses. One that repeats the loss before it is carried over: two readings are never equal to the last bit."""
    losses = source.losses[:seen]
    read = [0, *(i for i in range(1, seen) if losses[i] != losses[i - 1])]
    age, interval = seen - 1 - read[-1], read[-1] - read[-2] if len(read) > 1 else 1
    if source.role == "anchor":
        return SourceReading(source.name, "anchor", losses, source.reference_loss, age, interval)
    role: Role = "past" if seen > num_stages else "current"
    return SourceReading(source.name, role, losses, source.reference_loss if role == "past" else None, age, interval)
