"""Rivals without feedback: a share for every place in the sequence, and one mixture for all of it.

shares [task][stage] → schedule → Rule       weights per source → static_mixture → Rule
shares of several runs → mean_schedule        (a learnt controller's own schedule, to be replayed open-loop)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from proxymix.controllers.rule import Rule, checked_share, evenly
from proxymix.errors import UserError
from proxymix.types import StageBoundary

Shares = Sequence[Sequence[float]]
"""Replay shares in [0, 1], `[num_tasks][num_stages]`."""


def schedule(shares: Shares, name: str = "schedule", anchor_scores: Sequence[float] = ()) -> Rule:
    """The share that stands at the run's place, uniform over sources or split by role.

    In a longer run, tasks beyond the last scheduled one are treated like it. A task of another number of stages is read at the same
    fraction of the task: stage s of n takes the entry ⌊s · scheduled / n⌋.

    Args:
        shares: one row a task, none empty.
        name: as it stands in tables.
        anchor_scores: a task's score of every anchor, where a past task has 1; at least 0. None: evenly.

    Raises:
        ValueError: it is empty, or a share is outside [0, 1].
    """
    rows = [[checked_share(float(value)) for value in row] for row in shares]
    if not rows or not all(rows):
        raise ValueError(f"shares must have a row for every task and a number for every stage, got {rows}")

    def share(boundary: StageBoundary) -> float:
        row = rows[min(boundary.task_index, len(rows) - 1)]
        return row[boundary.stage_index * len(row) // boundary.num_stages]

    def by_role(boundary: StageBoundary) -> Mapping[str, float]:
        anchor = anchor_scores[min(boundary.task_index, len(anchor_scores) - 1)]
        return {source.name: anchor if source.role == "anchor" else 1.0 for source in boundary.sources}

    return Rule(name, share, by_role if anchor_scores else evenly)


def mean_schedule(runs: Sequence[Shares]) -> list[list[float]]:
    """The mean replay share at every (task, stage), `[longest run's tasks][stages]`, over the runs that came so far.

    Args:
        runs: shares `[task][stage]` of at least one whole run; of one number of stages, but runs may differ in length.
    """
    rows = [[shares[task] for shares in runs if len(shares) > task] for task in range(max(map(len, runs)))]
    return [[float(share) for share in np.mean(row, axis=0)] for row in rows]


def static_mixture(weights: Mapping[str, float], name: str = "doremi") -> Rule:
    """One mixture for the whole run, renormalised over what is visible; the current task is one source among the others.

    What learnt `weights` has seen every domain, later ones too (`proxymix.doremi`): a row to be marked so.

    Args:
        weights: per source, non-negative; a name that is not visible yet changes nothing but the scale.
        name: as it stands in tables.

    Raises:
        ValueError: a weight is negative or not finite. At a decision UserError: a visible source has no weight.
    """
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
        raise ValueError(f"weights must be finite and at least 0, got {dict(weights)}")

    def share(boundary: StageBoundary) -> float:
        if missing := [source for source in boundary.names if source not in weights]:
            raise UserError(f"{name}: the mixture must have a weight for {missing}, got {sorted(weights)}; learn it on this sequence's domains")
        total = sum(weights[source] for source in boundary.names)
        return 1.0 - weights[boundary.current.name] / total if total > 0 else 1.0 - 1.0 / len(boundary.sources)

    return Rule(name, share, lambda boundary: weights)
