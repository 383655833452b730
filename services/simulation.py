"""The decisions a controller would have made along a run that is known: for looking before trusting.

    boundary (its histories hold the whole run) → trajectory → controller.decide at each → SimulatedDecision

A run's last boundary contains every earlier one: each history's length says when its source became visible. An anchor's reference was known from
the start, a past task's from its end on.
"""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError

from proxymix.guard import earlier_boundary
from proxymix.types import Controller, StageBoundary
from services.schemas import DecisionResponse, SimulatedDecision

MAX_WORK = 1_000_000
"""Boundaries times losses; a run of 28 tasks, 8 stages each, with 4 anchors is just below. About a second."""


def trajectory(boundary: StageBoundary) -> list[StageBoundary]:
    """Every boundary of the run up to and with `boundary`.

    Raises:
        RequestValidationError: the histories' lengths are not those of one run from its start, or there is too much to simulate.
    """
    total = boundary.task_index * boundary.num_stages + boundary.stage_index + 1
    tasks = set(range(boundary.task_index))
    for index, source in enumerate(boundary.sources):
        missed, length = total - len(source.losses), len(source.losses)
        if source.role == "anchor" and missed:
            raise _fault(index, f"an anchor has a loss for each of the {total} boundaries so far", length)
        if source.role == "current" and length != boundary.stage_index + 1:
            raise _fault(index, f"the current task has stage_index + 1 = {boundary.stage_index + 1} losses", length)
        if source.role == "past" and (missed % boundary.num_stages or missed // boundary.num_stages not in tasks):
            raise _fault(index, f"a past task has a loss for each boundary since it began, one of {total} less a multiple of num_stages", length)
        if source.role == "past":
            tasks.remove(missed // boundary.num_stages)
    if tasks:
        raise _fault(None, f"every task up to the current one must be there, missing those of index {sorted(tasks)[:8]}", len(boundary.sources))
    work = total * sum(len(source.losses) for source in boundary.sources)
    if work > MAX_WORK:
        raise _fault(None, f"boundaries times losses must be at most {MAX_WORK}; simulate the start of the run", work)
    return [*(earlier_boundary(boundary, time) for time in range(total - 1)), boundary]


def simulate(controller: Controller, boundaries: list[StageBoundary]) -> list[SimulatedDecision]:
    """The decision at each boundary."""
    decisions = []
    for boundary in boundaries:
        # Through the same checks as an answer to POST /v1/decisions.
        answer = DecisionResponse.from_decision(controller.decide(boundary), boundary, "simulated")
        decisions.append(
            SimulatedDecision(
                task_index=boundary.task_index, stage_index=boundary.stage_index, weights=answer.weights, replay_share=answer.replay_share
            )
        )
    return decisions


def _fault(index: int | None, rule: str, value: int) -> RequestValidationError:
    where = ("body", "sources") if index is None else ("body", "sources", index, "losses")
    return RequestValidationError([{"loc": where, "msg": rule, "input": value}])
