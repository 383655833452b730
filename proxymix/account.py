"""costs.jsonl: what every piece of work of a run took. The cost columns of every table come from here and nowhere else.

    work is done (or found in a cache) → Account.add → a line → made: what the results cost; spent: what this run paid

A line's key (item, id) names what was made. Work that is done again, as after a kill, adds a line under the same key: `made` counts each key
once, `spent` every line that was not cached. So a table neither grows when a driver was killed nor shrinks when a cache was warm.
What a process had under way when it was killed is in no line: at most one stage, pilot or iteration.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from proxymix.artifacts import append_jsonl

Item = Literal["pretraining", "pilot", "reference", "episodes", "sweep_trial", "guard", "tuning"]
POLICY_ITEMS: tuple[Item, ...] = ("pilot", "reference", "episodes", "sweep_trial", "guard")
"""What having a controller that may be trusted costs. Base models are given, and scoring is measuring."""
GIVEN, VALIDATION = "given/", "validation"
"""With which ids of lines begin: of what was made in another run, and of a sweep's held-out cases."""


@dataclass(frozen=True)
class Cost:
    """Of one piece of work."""

    flops: int
    """Of training and in-loop validation (`proxymix.cost`)."""
    cpu_seconds: float = 0.0
    """Process time of the processes that did it, start-up excluded."""
    gpu_seconds: float = 0.0
    """Wall-clock times GPUs held."""


@dataclass(frozen=True)
class CostLine:
    """One line of `costs.jsonl`."""

    item: Item
    id: str
    """Unique within the item."""
    model: Literal["proxy", "target"]
    flops: int
    cpu_seconds: float
    gpu_seconds: float
    cached: bool = False
    """Found in a cache: the numbers are what making it took, then; nothing was spent now."""
    episodes: int = 1
    """Continual runs that the line sums over."""


def of_policy(line: CostLine) -> bool:
    """Whether having the run's controller took it. A sweep of the run itself did not: it found settings for another, in whose account it is given."""
    if line.item == "sweep_trial":
        return line.id.startswith(GIVEN)
    return line.item in POLICY_ITEMS and not (line.item == "reference" and line.id.startswith(VALIDATION))


class Account:
    """The lines of one run; any number of processes may add to them."""

    def __init__(self, path: Path) -> None:
        """Args: `path` of `costs.jsonl`; it need not exist yet."""
        self.path = path
        self._flops: dict[tuple[str, str], int] = {}
        self._bytes_read = 0

    def add(self, item: Item, id: str, model: Literal["proxy", "target"], cost: Cost, *, cached: bool = False, episodes: int = 1) -> None:
        """Appends a line. What was found in a cache is told once, and not at all where it was made in this run."""
        if cached and self.has(item, id):
            return
        seconds = {"cpu_seconds": round(cost.cpu_seconds, 3), "gpu_seconds": round(cost.gpu_seconds, 3)}
        line = CostLine(item, id, model, cost.flops, **seconds, cached=cached, episodes=episodes)
        append_jsonl(self.path, asdict(line))

    def has(self, item: Item, id: str) -> bool:
        """Whether there is a line of this key."""
        self._read_on()
        return (item, id) in self._flops

    def flops(self, item: Item, id: str) -> int:
        """What making it took: the operations in the first line of this key.

        Raises:
            KeyError: there is none.
        """
        self._read_on()
        return self._flops[item, id]

    def lines(self) -> list[CostLine]:
        """Every line, in order; one that was cut short by a kill is left out."""
        return _parsed(self.path.read_text(encoding="utf-8")) if self.path.exists() else []

    def made(self, *items: Item) -> list[CostLine]:
        """The first line of every key of these items: what the results cost, whoever paid for it and however often."""
        first: dict[tuple[str, str], CostLine] = {}
        for line in self.lines():
            if line.item in items:
                first.setdefault((line.item, line.id), line)
        return list(first.values())

    def spent(self) -> list[CostLine]:
        """Every line that this run paid for, repeated work included."""
        return [line for line in self.lines() if not line.cached]

    def _read_on(self) -> None:
        """Takes in the lines that were added since it last did."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._bytes_read)
                whole = file.read().rpartition(b"\n")[0]
            self._bytes_read += len(whole)
            for line in _parsed(whole.decode("utf-8")):
                self._flops.setdefault((line.item, line.id), line.flops)


def _parsed(text: str) -> list[CostLine]:
    found = []
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            found.append(CostLine(**json.loads(line)))
    return found


def total_flops(lines: Iterable[CostLine]) -> int:
    """Their operations together."""
    return sum(line.flops for line in lines)


@dataclass
class Meter:
    """Seconds of this process from when it was made; `read` may be called more than once."""

    num_gpus: float = 0
    """GPUs it holds, or its share of one."""

    def __post_init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def read(self, flops: int) -> Cost:
        """The cost so far of work that took `flops` operations."""
        return Cost(flops, time.process_time() - self._cpu, self.num_gpus * (time.perf_counter() - self._wall))
