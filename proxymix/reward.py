"""What the controller is learnt for. Pure numpy; which reward is used is `controller.reward.kind`.

dense:  Eq. 6 at every stage boundary, for the action *before* it
paired: once at the end, the run's score against reference runs of the very same case
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from proxymix.observation import last_change, normalised
from proxymix.types import StageBoundary


def paper_reward(after: StageBoundary, trained: str, *, lambda_: float, beta: float, safety: float | None) -> float:
    """Eq. 6: r = −Δℓ̃_k − λ · Σ_{i<k} max(0, Δℓ̃_i) / max(k−1, 1) + β · S.

    Args:
        after: the boundary at the end of the stage the action governed; its readings hold that stage's change.
        trained: name of the task that was tuned on during that stage.
        lambda_: weight of loss rises of the other sources visible then.
        beta: weight of the safety score.
        safety: S (Eq. 7) on validation data, in [−γ, 1]; None while no safety source is visible (the term is then left out).
    """
    # A task that has just appeared has no change yet and was not there to be harmed; of one that was not read none is known.
    changes = {s.name: 0.0 if s.age else last_change(normalised(s.losses)) for s in after.sources if len(s.losses) > 1}
    rises = [max(0.0, change) for name, change in changes.items() if name != trained]
    return -changes[trained] - lambda_ * sum(rises) / max(len(rises), 1) + (beta * safety if safety is not None else 0.0)


def safety_score(refusal_accuracy: float, benign_compliance: float, gamma: float = 1.0) -> float:
    """SS = RefusalAcc(harmful) − γ · OverRefusal(benign) (Eq. 7), in [−γ, 1].

    >>> safety_score(0.9, 0.8)
    0.7
    """
    return round(refusal_accuracy - gamma * (1.0 - benign_compliance), 12)


def paired_reward(score: float, reference_scores: Sequence[float], scale: float) -> float:
    """How much better than reference runs of the same order, lengths, data stream and seed, in units of `scale`.

    Pairing removes what belongs to the case; returns otherwise vary more by order than by policy.

    >>> paired_reward(0.62, [0.60, 0.58], scale=0.03)
    1.0
    """
    return round((score - float(np.mean(reference_scores))) / scale, 9)


def final_score(accuracies: Mapping[str, float], leave_out: str | None = None) -> float:
    """J: mean validation accuracy over the tasks and anchors at the end of a run, in [0, 1]; one source may be left out of it (an ablation).

    >>> final_score({"math": 0.5, "safety": 1.0}), final_score({"math": 0.5, "safety": 1.0}, leave_out="safety")
    (0.75, 0.5)
    """
    return float(np.mean([accuracy for name, accuracy in accuracies.items() if name != leave_out]))
