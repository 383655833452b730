"""One decision for all workers of a data-parallel group.

rank 0 asks → everyone hears the same Decision
"""

from __future__ import annotations

from collections.abc import Callable

from proxymix.ranks import Ranks
from proxymix.types import Controller, Decision, StageBoundary


class SharedController:
    """Asks a controller on rank 0 and tells every rank what it said, so that all mix alike."""

    def __init__(self, name: str, build: Callable[[], Controller], ranks: Ranks) -> None:
        """Args: `build` makes the controller; called on rank 0 at the first decision."""
        self.name, self._build, self._ranks = name, build, ranks
        self._controller: Controller | None = None

    def decide(self, boundary: StageBoundary) -> Decision:
        """Rank 0's decision."""
        return self._ranks.from_first(lambda: self._ask(boundary))

    def close(self) -> None:
        """Closes the controller if it is there and can be closed."""
        close = getattr(self._controller, "close", None)
        if close is not None:
            close()

    def _ask(self, boundary: StageBoundary) -> Decision:
        if self._controller is None:
            self._controller = self._build()
        return self._controller.decide(boundary)
