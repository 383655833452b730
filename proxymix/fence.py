"""One group of workers at a time writes a target run's folder, also where a cut network has left two alive.

begin: a new token in the folder → before every write: is it still there? → else this group ends, and writes nothing
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from proxymix.artifacts import write_text, writing
from proxymix.errors import SupersededError


class Fence:
    """Keeps a group out that others have taken over from: one that Ray gave up, but that still runs where Ray cannot reach it."""

    def __init__(self, path: Path) -> None:
        """Args: `path` of the token. Nothing is written, and nobody kept out, before `take`."""
        self.path = path
        self.token: str | None = None

    def take(self) -> str:
        """From now on the run is this group's; returns its token, new each time.

        Raises:
            UserError: it cannot be written.
        """
        self.token = uuid4().hex[:8]
        with writing(self.path):
            write_text(self.path, self.token)
        return self.token

    def check(self) -> None:
        """Between this and the write that follows others may still come: the window is as long as that write, not as a stage.

        Raises:
            SupersededError: the run is no longer this group's.
        """
        if self.token is None:
            return
        try:
            found = self.path.read_text()
        except FileNotFoundError:
            found = "none"
        if found != self.token:
            begun = f"{self.path.parent} was begun with token {self.token}"
            raise SupersededError(f"{begun} and has {found} now: others tune it, so nothing more is written")

    def remove(self) -> None:
        """The run is over; whoever still comes finds no token of its own."""
        self.path.unlink(missing_ok=True)
