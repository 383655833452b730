"""What a controller decided is on disk before the stage it is for begins: a stage that is tuned again is tuned with the same mixture.

    boundary → answered before? → else controller.decide → answers.jsonl → the stage

Else a service that was away, or updated, between a kill and the restart would make another stage of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from proxymix.artifacts import read_jsonl, write_jsonl, writing
from proxymix.fence import Fence
from proxymix.types import Controller, Decision, StageBoundary


def decision_fields(decision: Decision) -> dict[str, Any]:
    """A decision as it stands in a row."""
    return {
        "weights": dict(decision.weights),
        "controller": {"name": decision.controller, "sha256": decision.sha256},
        "fallback": decision.fallback,
    }


def decision_of(row: Mapping[str, Any]) -> Decision:
    """The inverse of `decision_fields`; other keys of `row` are left alone."""
    return Decision(row["weights"], row["controller"]["name"], row["controller"]["sha256"], row["fallback"])


class AskedOnce:
    """A controller that is asked at every boundary of a run once, whatever dies meanwhile; implements `proxymix.types.Controller`."""

    def __init__(
        self, choose: Callable[[str | None], Controller], path: Path, rows: Iterable[Mapping[str, Any]] = (), fence: Fence | None = None
    ) -> None:
        """Nothing is asked yet.

        Args:
            choose: makes the controller, given the hash of the one that the run began with; None: it may be any.
            path: of the answers; for one process at a time.
            rows: of `decisions.jsonl`, of the stages that are over.
            fence: of the run; None: nobody else can come.
        """
        self.path, self.fence = path, fence or Fence(path.with_name("token"))
        self._answers = {(row["task_index"], row["stage_index"]): decision_of(row) for row in (*rows, *read_jsonl(path))}
        self.controller = choose(next((answer.sha256 for answer in self._answers.values() if answer.sha256), None))
        self.name = self.controller.name

    def decide(self, boundary: StageBoundary) -> Decision:
        """What was answered before, or the controller's answer, once it is kept.

        Raises:
            UserError: it cannot be kept.
            SupersededError: the run is another group's by now.
        """
        place = boundary.task_index, boundary.stage_index
        if place not in self._answers:
            self._answers[place] = self.controller.decide(boundary)
            self.fence.check()
            self._keep()
        return self._answers[place]

    def close(self) -> None:
        """Closes the controller, if it is one to be closed."""
        close = getattr(self.controller, "close", None)
        if close is not None:
            close()

    def _keep(self) -> None:
        rows = ({"task_index": task, "stage_index": stage, **decision_fields(answer)} for (task, stage), answer in self._answers.items())
        with writing(self.path):
            write_jsonl(self.path, rows)
