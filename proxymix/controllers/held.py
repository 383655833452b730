"""A controller that is asked at every n-th boundary of a task only; its mixture is held in between.

boundary → asked here? → controller.decide → held until the next
"""

from __future__ import annotations

from proxymix.types import Controller, Decision, StageBoundary


class HeldDecisions:
    """Implements `proxymix.types.Controller`. A task begins with a decision in any case: it is a source that no earlier mixture has."""

    def __init__(self, controller: Controller, every: int, held: Decision | None = None) -> None:
        """Nothing is asked yet.

        Args:
            controller: what decides.
            every: stages that a decision lasts; 1 asks always.
            held: the decision of the stage before, where a run is gone on with in the middle of a task.
        """
        self.controller, self.every, self.held, self.name = controller, every, held, controller.name

    def decide(self, boundary: StageBoundary) -> Decision:
        """The controller's mixture, or the one it decided last."""
        if self.held is None or boundary.stage_index % self.every == 0:
            self.held = self.controller.decide(boundary)
        return self.held

    def close(self) -> None:
        """Closes the controller, if it is one to be closed."""
        close = getattr(self.controller, "close", None)
        if close is not None:
            close()
