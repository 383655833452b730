"""Feedback-free controllers: the rows every learnt controller must beat, and the declared fallback."""

from __future__ import annotations

import re
from dataclasses import replace

from proxymix.errors import UserError
from proxymix.types import Controller, Decision, StageBoundary


def uniform_decision(name: str, boundary: StageBoundary, replay_share: float) -> Decision:
    """`replay_share` in equal parts over every replayable source, the rest on the current task.

    With nothing to replay the current task gets everything.
    """
    replayable = [source.name for source in boundary.sources if source.role != "current"]
    share = replay_share if replayable else 0.0
    weights = {source: share / len(replayable) for source in replayable}
    weights[boundary.current.name] = 1.0 - share
    return Decision(weights={source.name: weights[source.name] for source in boundary.sources}, controller=name)


class UniformReplay:
    """Random replay at a fixed share, uniform over buffers (paper: Random 10 %, Random 30 %; No Replay at 0)."""

    def __init__(self, replay_share: float, name: str | None = None) -> None:
        """Args: `replay_share` in [0, 1]; `name` as it stands in tables."""
        if not 0.0 <= replay_share <= 1.0:
            raise ValueError(f"replay_share must be in [0, 1], got {replay_share}")
        self.replay_share = replay_share
        self.name = name or (f"random_{100 * replay_share:g}" if replay_share else "no_replay")

    def decide(self, boundary: StageBoundary) -> Decision:
        """The fixed mixture."""
        return uniform_decision(self.name, boundary, self.replay_share)


class Ramp:
    """Share n/(n + c) with n replayable sources: the strongest feedback-free schedule by hand (docs/log.md)."""

    def __init__(self, constant: float = 10.0, name: str | None = None) -> None:
        """Args: `constant` > 0, the share is one half when that many sources are replayable; `name` as it stands in tables."""
        if constant <= 0:
            raise ValueError(f"constant must be positive, got {constant}")
        self.constant = constant
        self.name = name or f"ramp_{constant:g}"

    def decide(self, boundary: StageBoundary) -> Decision:
        """More replay as buffers accumulate."""
        replayable = len(boundary.sources) - 1
        return uniform_decision(self.name, boundary, replayable / (replayable + self.constant))


class DeclaredFallback:
    """The mixture declared for when the learnt controller must not be used; every decision says why."""

    def __init__(self, fallback: Controller, reason: str) -> None:
        """Args: `reason` goes into every record."""
        self.fallback, self.reason, self.name = fallback, reason, fallback.name

    def decide(self, boundary: StageBoundary) -> Decision:
        """The fallback's mixture, marked."""
        return replace(self.fallback.decide(boundary), fallback=self.reason)


def baseline(method: str) -> Controller:
    """The controller a table row names: `no_replay`, `random_<percent>`, `ramp_<c>`.

    Raises:
        UserError: no such method.
    """
    if method == "no_replay":
        return UniformReplay(0.0)
    kind, _, number = method.partition("_")
    value = float(number) if re.fullmatch(r"\d+(\.\d+)?", number) else -1.0
    if kind == "random" and 0 <= value <= 100:
        return UniformReplay(value / 100, method)
    if kind == "ramp" and value > 0:
        return Ramp(value, method)
    raise UserError(f"methods: must be proxymix, no_replay, random_<0..100> or ramp_<c>0>, got {method!r}")
