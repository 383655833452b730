"""POST /v1/simulate: the decisions along a run are those that were, or would have been, asked for one by one."""

from dataclasses import replace

import numpy as np
import pytest
from fake_service import post, shaken
from fastapi.testclient import TestClient

from proxymix.guard import earlier_boundary
from proxymix.types import SourceReading, StageBoundary
from services.app import build_app
from services.schemas import DecisionRequest

STAGES = 3


def run(num_tasks=3, stage=1, seed=0):
    """The last boundary of a run: two anchors, `num_tasks` tasks of three stages."""
    rng = np.random.default_rng(seed)
    total = (num_tasks - 1) * STAGES + stage + 1

    def losses(count):
        return tuple(rng.uniform(0.1, 3.0, count).tolist())

    sources = []
    for name in ("safety", "general"):
        history = losses(total)
        sources.append(SourceReading(name, "anchor", history, history[0]))
    for task in range(num_tasks - 1):
        history = losses(total - task * STAGES)
        sources.append(SourceReading(f"task{task}", "past", history, history[STAGES]))
    sources.append(SourceReading("now", "current", losses(stage + 1)))
    return StageBoundary(num_tasks - 1, stage, STAGES, tuple(sources))


@pytest.fixture(scope="module")
def service():
    return TestClient(build_app(shaken("equivariant"), token=None), raise_server_exceptions=False)


def simulate(service, boundary, **changes):
    body = DecisionRequest.from_boundary(boundary, "r").model_dump(exclude_defaults=True)
    return service.post("/v1/simulate", json={**body, **changes})


def test_a_simulation_is_the_decisions_one_by_one(service):
    boundary = run()
    answer = simulate(service, boundary).json()
    assert [(one["task_index"], one["stage_index"]) for one in answer["decisions"]] == [(t, s) for t in range(3) for s in range(3)][:8]
    for time, simulated in enumerate(answer["decisions"]):
        then = earlier_boundary(boundary, time)
        asked = post(service, DecisionRequest.from_boundary(then, "r").model_dump_json(exclude_none=True).encode()).json()
        assert simulated["weights"] == asked["weights"]
        assert simulated["replay_share"] == asked["replay_share"]
    assert (answer["controller"]["name"], answer["request_id"]) == ("equivariant", "r")


def test_earlier_boundaries_have_the_references_that_were_given(service):
    """A caller's reference need be none of the losses: an anchor's may be measured on more rows."""
    boundary = run(num_tasks=2, stage=0)
    given = [replace(source, reference_loss=None if source.role == "current" else 0.05) for source in boundary.sources]
    simulated = simulate(service, replace(boundary, sources=tuple(given))).json()["decisions"]
    safety, general, task, now = given
    for time, one in enumerate(simulated):
        seen = [replace(source, losses=source.losses[: time + 1]) for source in (safety, general, task)]
        if time < STAGES:
            seen[2] = replace(seen[2], role="current", reference_loss=None)
        else:
            seen.append(now)
        then = StageBoundary(time // STAGES, time % STAGES, STAGES, tuple(seen))
        assert one["weights"] == post(service, DecisionRequest.from_boundary(then, "r").model_dump(exclude_none=True)).json()["weights"]


def test_the_first_boundary_is_simulated_too(service):
    assert len(simulate(service, run(num_tasks=1, stage=0)).json()["decisions"]) == 1


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda s: s["losses"].pop(), "an anchor has a loss for each of the 8 boundaries so far, got 7"),
        (2, lambda s: s["losses"].pop(), "a past task has a loss for each boundary since it began"),
        (3, lambda s: s["losses"].extend([1.0] * 3), "a past task has a loss for each boundary since it began"),
        (4, lambda s: s["losses"].pop(), "the current task has stage_index + 1 = 2 losses, got 1"),
        (2, None, "every task up to the current one must be there, missing those of index [0]"),
    ],
)
def test_histories_of_no_run_are_422(service, index, change, message):
    body = DecisionRequest.from_boundary(run(), "r").model_dump(exclude_defaults=True)
    if change is None:
        del body["sources"][index]
    else:
        change(body["sources"][index])
    answer = service.post("/v1/simulate", json=body)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_too_much_is_422():
    service = TestClient(build_app(shaken("equivariant"), token=None))
    sources = [{"name": "now", "role": "current", "losses": [1.0] * 5000}]
    body = {"request_id": "r", "task_index": 0, "stage_index": 4999, "num_stages": 5000, "sources": sources}
    answer = service.post("/v1/simulate", json=body)
    assert (answer.status_code, "boundaries times losses must be at most" in answer.json()["detail"]) == (422, True)
