"""The learning rate's way through a task: linear warm-up, then cosine to a tenth."""

from __future__ import annotations

import math


def rate_factor(steps_done: int, num_steps: int, warmup_fraction: float) -> float:
    """What the peak learning rate is multiplied with at the next optimizer step, in (0, 1].

    Args:
        steps_done: optimizer steps of the task before this one.
        num_steps: of the whole task.
        warmup_fraction: share of them before the peak.

    >>> [round(rate_factor(step, 5, 0.2), 3) for step in range(6)]
    [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    """
    warmup = warmup_fraction * num_steps
    if steps_done < warmup:
        return (steps_done + 1) / (warmup + 1)
    progress = (steps_done - warmup) / max(num_steps - warmup, 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(progress, 1.0)))
