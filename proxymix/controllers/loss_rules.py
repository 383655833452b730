"""Rivals that read nothing but the losses of a boundary: split by loss, by its rise; the share by how well the current task is learnt.

StageBoundary → losses, loss_slopes → Rule        (paper: Proportional, Loss-Slope; prototype: the saturation rule)
"""

from __future__ import annotations

from proxymix.controllers.rule import Rule, Scores
from proxymix.observation import last_change, normalised
from proxymix.types import StageBoundary

SATURATION_THRESHOLD = 0.2
"""Nats per answer token: the current loss at which the hand-written rule stands half way."""


def losses(boundary: StageBoundary) -> Scores:
    """The last loss of every replayable source, nats per answer token."""
    return {source.name: source.losses[-1] for source in boundary.sources if source.role != "current"}


def loss_slopes(boundary: StageBoundary) -> Scores:
    """max(0, Δℓ̃) of every replayable source: the rise of its normalised loss, per stage, at its last reading.

    Normalised as the paper's state is (`proxymix.observation.flat_observation`), so that all read the same.
    """
    read = {source.name: source.losses[: len(source.losses) - source.age] for source in boundary.sources if source.role != "current"}
    return {source.name: max(0.0, last_change(normalised(read[source.name])) / source.interval) for source in boundary.sources if source.name in read}


def proportional(replay_share: float, name: str | None = None) -> Rule:
    """Proportional: a fixed share, split ∝ loss."""
    return Rule(name or f"proportional_{100 * replay_share:g}", replay_share, losses)


def loss_slope(replay_share: float, name: str | None = None) -> Rule:
    """Loss-Slope: a fixed share, split ∝ max(0, Δℓ̃); in equal parts where no loss rises."""
    return Rule(name or f"loss_slope_{100 * replay_share:g}", replay_share, loss_slopes)


def saturation(threshold: float = SATURATION_THRESHOLD, name: str | None = None) -> Rule:
    """The hand-written rule: learn while there is something to learn, replay once there is not; split ∝ loss.

    Share = .15 + .65 / (1 + (ℓ/threshold)²) with ℓ the current task's loss: .8 at 0, .475 at the threshold, .15 far above.
    The prototype tells the ends and the middle; the square between them is our choice.

    Args:
        threshold: > 0, nats per answer token.
        name: as it stands in tables.

    Raises:
        ValueError: the threshold is not positive.
    """
    if threshold <= 0:
        raise ValueError(f"threshold must be positive, got {threshold}")

    def share(boundary: StageBoundary) -> float:
        return 0.15 + 0.65 / (1.0 + (boundary.current.losses[-1] / threshold) ** 2)

    return Rule(name or f"saturation_{threshold:g}", share, losses)
