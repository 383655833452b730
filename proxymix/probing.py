"""Which sources' losses are read at a stage boundary, and what is known of the others.

    visible sources → Readings.due(budget) → the learner reads those → Readings.add → history, age and interval of every source

A reading costs a forward pass, so with many sources only some are read at a boundary; the rest carry their last reading over. What is
read depends on the run's own past alone. Pure Python.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any


class Readings:
    """Loss histories of the sources seen so far, and how old what they end with is."""

    def __init__(self) -> None:
        """Nothing has been read."""
        self.histories: dict[str, list[float]] = {}
        """Nats per answer token, one per boundary since the source became visible; carried-over readings repeat the one before."""
        self.ages: dict[str, int] = {}
        """Stages since the source was last read; 0: at this boundary."""
        self.intervals: dict[str, int] = {}
        """Stages between the source's last two readings; 1 while there is only one."""

    def due(self, visible: Sequence[str], always: Collection[str], budget: int) -> list[str]:
        """What to read at the next boundary: `always`, whatever was never read, then the oldest readings while `budget` lasts.

        At most two are read out of turn (what was trained, and a task that has just come), so each of n sources is read again within
        ceil(n / (budget − 2)) boundaries.

        Args:
            visible: names; of equally old readings the first is read first.
            always: names read whatever it costs.
            budget: sources to read; exceeded only by `always` and sources that were never read (all anchors, at the first boundary).

        Returns:
            Names in the order of `visible`.

        >>> readings = Readings()
        >>> readings.add(["safety", "general", "code"], {"safety": 0.4, "general": 0.9, "code": 2.1})
        >>> readings.add(["safety", "general", "code"], {"safety": 0.5, "code": 1.8})
        >>> readings.due(["safety", "general", "code"], always={"code"}, budget=2)
        ['general', 'code']
        """
        chosen = {name for name in visible if name in always or name not in self.ages}
        oldest = sorted((name for name in visible if name not in chosen), key=lambda name: -self.ages[name])
        chosen.update(oldest[: max(0, budget - len(chosen))])
        return [name for name in visible if name in chosen]

    def add(self, visible: Sequence[str], losses: Mapping[str, float]) -> None:
        """One boundary more: `losses` are what was read, every other visible source carries over."""
        for name in visible:
            if name in losses:
                self.intervals[name] = self.ages[name] + 1 if name in self.ages else 1
                self.ages[name] = 0
                self.histories.setdefault(name, []).append(losses[name])
            else:
                self.ages[name] += 1
                self.histories[name].append(self.histories[name][-1])

    def state_dict(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        histories = {name: list(losses) for name, losses in self.histories.items()}
        return {"histories": histories, "ages": dict(self.ages), "intervals": dict(self.intervals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.histories = {name: list(losses) for name, losses in state["histories"].items()}
        self.ages, self.intervals = dict(state["ages"]), dict(state["intervals"])
