"""A rule: how much is replayed, and how that is split. Every controller that is neither learnt nor a fallback is one.

boundary → share in [0, 1], scores ≥ 0 per source → split_decision → Decision
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from proxymix.types import Decision, StageBoundary

Scores = Mapping[str, float]
Share = Callable[[StageBoundary], float]
Split = Callable[[StageBoundary], Scores]


class Rule:
    """Replays a share, split in proportion to scores; implements `proxymix.types.Controller`."""

    def __init__(self, name: str, share: float | Share, split: Split) -> None:
        """Nothing is asked yet.

        Args:
            name: as it stands in tables.
            share: of all samples, in [0, 1]; a number, or what tells it of a boundary.
            split: a score of every replayable source at a boundary, at least 0; only their proportions count.

        Raises:
            ValueError: a fixed share outside [0, 1].
        """
        if not callable(share):
            fixed = checked_share(share)
            self.share: Share = lambda boundary: fixed
        else:
            self.share = share
        self.name, self.split = name, split

    def decide(self, boundary: StageBoundary) -> Decision:
        """The mixture that share and scores make here.

        Raises:
            ValueError: the share is outside [0, 1], or a score is negative or not finite.
        """
        return split_decision(self.name, boundary, checked_share(self.share(boundary)), self.split(boundary))


def split_decision(name: str, boundary: StageBoundary, replay_share: float, scores: Scores) -> Decision:
    """`replay_share` split over the replayable sources in proportion to `scores`, the rest on the current task.

    Equal parts where every score is 0 (a rule that sees nothing to prefer). With nothing to replay the current task gets everything.

    Args:
        name: of what decides.
        boundary: what is visible.
        replay_share: in [0, 1].
        scores: at least 0; sources that are not replayable here are ignored, missing ones have 0.
    """
    replayable = {source.name: float(scores.get(source.name, 0.0)) for source in boundary.sources if source.role != "current"}
    if not all(math.isfinite(score) and score >= 0 for score in replayable.values()):
        raise ValueError(f"scores must be finite and at least 0, got {replayable} from {name!r}; a loss that is not finite ends a run elsewhere")
    peak = max(replayable.values(), default=0.0)
    parts = {source: score / peak if peak else 1.0 for source, score in replayable.items()}  # At most 1: no sum can overflow.
    total, share = sum(parts.values()), replay_share if replayable else 0.0
    weights = {source: share * part / total for source, part in parts.items()}
    weights[boundary.current.name] = 1.0 - share
    return Decision(weights={source.name: weights[source.name] for source in boundary.sources}, controller=name)


def evenly(boundary: StageBoundary) -> Scores:
    """Equal parts for every source."""
    return {}


def checked_share(replay_share: float) -> float:
    """`replay_share` as it is.

    Raises:
        ValueError: it is outside [0, 1].
    """
    if not 0.0 <= replay_share <= 1.0:
        raise ValueError(f"replay_share must be in [0, 1], got {replay_share}")
    return replay_share
