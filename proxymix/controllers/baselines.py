"""Controllers by name: what a learnt one must beat, as far as a number says all of it; and the declared fallback."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from proxymix.controllers.loss_rules import loss_slope, proportional, saturation
from proxymix.controllers.rule import checked_share, split_decision
from proxymix.errors import UserError
from proxymix.types import Controller, Decision, StageBoundary


def uniform_decision(name: str, boundary: StageBoundary, replay_share: float) -> Decision:
    """`replay_share` in equal parts over every replayable source, the rest on the current task.

    With nothing to replay the current task gets everything.
    """
    return split_decision(name, boundary, replay_share, {})


class UniformReplay:
    """Random replay at a fixed share, uniform over buffers (paper: Random 10 %, Random 30 %; No Replay at 0)."""

    def __init__(self, replay_share: float, name: str | None = None) -> None:
        """Args: `replay_share` in [0, 1]; `name` as it stands in tables."""
        self.replay_share = checked_share(replay_share)
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


OF_A_SHARE: Mapping[str, Callable[[float, str], Controller]] = {
    "random": UniformReplay,
    "proportional": proportional,
    "loss_slope": loss_slope,
}
"""Called with a replay share in [0, 1] and a name."""
OF_A_CONSTANT: Mapping[str, Callable[[float, str], Controller]] = {"ramp": Ramp, "saturation": saturation}
"""Called with a positive constant and a name."""


class DeclaredFallback:
    """The mixture declared for when the learnt controller must not be used; every decision says why."""

    def __init__(self, fallback: Controller, reason: str) -> None:
        """Args: `reason` goes into every record."""
        self.fallback, self.reason, self.name = fallback, reason, fallback.name

    def decide(self, boundary: StageBoundary) -> Decision:
        """The fallback's mixture, marked."""
        return replace(self.fallback.decide(boundary), fallback=self.reason)


def kind_and_number(method: str) -> tuple[str, float]:
    """`loss_slope_30` is ("loss_slope", 30.0); -1 where the last word is no plain number."""
    kind, _, number = method.rpartition("_")
    return kind, float(number) if re.fullmatch(r"\d+(\.\d+)?", number) else -1.0


def baseline(method: str) -> Controller:
    """The controller a table row names, of those that need a number at most.

    `no_replay`, `random_<percent>`, `ramp_<c>`, `proportional_<percent>`, `loss_slope_<percent>`, `saturation`, `saturation_<nats>`.
    Those that need data, a model or a search's result are built by `proxymix.controllers.rivals.rival`.

    Raises:
        UserError: no such method.
    """
    if method == "no_replay":
        return UniformReplay(0.0)
    if method == "saturation":
        return saturation(name=method)
    kind, value = kind_and_number(method)
    if kind in OF_A_SHARE and 0 <= value <= 100:
        return OF_A_SHARE[kind](value / 100, method)
    if kind in OF_A_CONSTANT and value > 0:
        return OF_A_CONSTANT[kind](value, method)
    raise UserError(
        "methods: must be proxymix, no_replay, random_<0..100>, ramp_<c>0>, proportional_<0..100>, loss_slope_<0..100>, "
        f"saturation or saturation_<nats>0>, got {method!r}"
    )
