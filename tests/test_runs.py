"""What a replica remembers of running jobs: enough for the page, never more than its limits."""

from urllib.parse import quote

import pytest
from fake_service import LossProportional, client, example, post
from hypothesis import given
from hypothesis import strategies as st

from services.runs import MAX_LATEST_LOSSES, RecentRuns
from services.schemas import DecisionRequest, DecisionResponse

CONTROLLER = LossProportional()


def request(run="run", task=0, stage=0, num_sources=1, num_losses=1):
    sources = [{"name": f"s{i}", "role": "anchor", "reference_loss": 0.5, "losses": [1.0] * num_losses} for i in range(num_sources - 1)]
    return DecisionRequest(
        request_id=f"{run}/task{task}/stage{stage}",
        task_index=task,
        stage_index=stage,
        num_stages=1000,
        sources=[*sources, {"name": "now", "role": "current", "losses": [2.0] * num_losses}],
    )


def record(runs, asked, fallbacks=0):
    boundary = asked.to_boundary()
    runs.record(asked, DecisionResponse.from_decision(CONTROLLER.decide(boundary), boundary, asked.request_id), "fake@1", fallbacks)


def positions(runs, run="run"):
    return [(point.task_index, point.stage_index) for point in runs.detail(run).points]


def test_a_decision_is_remembered_with_what_was_said_and_answered():
    service = client()
    body = example()
    answer = post(service, body, **{"X-Proxymix-Fallbacks": "2"}).json()
    [summary] = service.get("/v1/runs").json()["runs"]
    detail = service.get("/v1/runs/run7/seed0").json()
    [point] = detail["points"]
    assert summary == {"run": "run7/seed0", "updated": point["time"], "task_index": 2, "stage_index": 1, "num_stages": 4, "num_points": 1}
    assert (point["task_index"], point["stage_index"], point["fallbacks"], point["controller"]) == (2, 1, 2, "fake@abababababab")
    assert {source["name"]: source["weight"] for source in point["sources"]} == answer["weights"]
    assert [(source["loss"], source["reference_loss"]) for source in point["sources"]] == [(0.52, 0.40), (1.58, 1.31), (1.75, None)]
    assert detail["latest"] == DecisionRequest.model_validate(body).model_dump()
    assert detail["replica"] == service.get("/v1/runs").json()["replica"]


def test_a_run_not_heard_of_has_no_points_because_another_replica_may_know_it():
    answer = client().get("/v1/runs/any/name%20at%2Fall")
    assert (answer.status_code, answer.json()["run"], answer.json()["points"]) == (200, "any/name at/all", [])


def test_what_is_named_otherwise_is_answered_and_forgotten():
    service = client()
    for name in ("what-if", "task1/stage1", "a/task1", "a/task1/stage1/again"):
        assert post(service, {**example(), "request_id": name}).status_code == 200
    assert service.get("/v1/runs").json()["runs"] == []


@pytest.mark.parametrize("name", ["..", ".", "x/../../controller", "./x", "x/.", "a\nb", "a\n../b", "\x7f", "a\0"])
def test_a_name_that_no_address_carries_is_no_runs(name):
    service = client()
    assert post(service, {**example(), "request_id": f"{name}/task0/stage0"}).status_code == 200
    assert service.get("/v1/runs").json()["runs"] == []


@pytest.mark.parametrize("name", ["...", "..a/b..", ".hidden/a.b", "männer & frauen/é 100%", "\u2028", "a/task0/stage0"])
def test_every_run_that_is_listed_can_be_read_by_its_name(name):
    service = client()
    post(service, {**example(), "request_id": f"{name}/task0/stage0"})
    [summary] = service.get("/v1/runs").json()["runs"]
    detail = service.get(f"/v1/runs/{quote(summary['run'])}").json()
    assert (summary["run"], detail["run"], len(detail["points"])) == (name, name, 1)


def test_a_refused_or_simulated_request_is_not_remembered():
    service = client()
    assert post(service, {**example(), "num_stages": 0}).status_code == 422
    whole = {**example(), "task_index": 0, "sources": [{"name": "math", "role": "current", "losses": [2.2, 1.75]}]}
    assert service.post("/v1/simulate", json=whole).status_code == 200
    assert post(service, example(), **{"X-Proxymix-Fallbacks": "-1"}).status_code == 422
    assert service.get("/v1/runs").json()["runs"] == []


def test_a_repeated_request_replaces_its_point_and_a_resumed_run_loses_what_was_ahead():
    runs = RecentRuns()
    for task, stage in ((0, 0), (0, 1), (0, 1), (1, 0), (1, 1)):
        record(runs, request(task=task, stage=stage))
    assert positions(runs) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    record(runs, request(task=0, stage=1))
    assert positions(runs) == [(0, 0), (0, 1)]
    assert runs.num_readings == 2


def test_histories_too_long_to_keep_are_not_kept():
    runs = RecentRuns()
    record(runs, request(num_losses=MAX_LATEST_LOSSES))
    assert runs.detail("run").latest is not None
    record(runs, request(stage=1, num_losses=MAX_LATEST_LOSSES + 1))
    assert runs.detail("run").latest is None
    assert positions(runs) == [(0, 0), (0, 1)]


def test_the_run_heard_of_last_comes_first_and_stays_longest():
    runs = RecentRuns(max_runs=2, clock=iter(range(100)).__next__)
    for name in ("a", "b", "a", "c"):
        record(runs, request(run=name, stage=len(runs.detail(name).points)))
    assert [(summary.run, summary.updated) for summary in runs.summaries().runs] == [("c", 3), ("a", 2)]
    assert runs.num_readings == 3


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6), st.integers(1, 9)), max_size=60))
def test_the_memory_is_bounded_whatever_comes(asked):
    runs = RecentRuns(max_runs=3, max_readings=20)
    for name, stage, num_sources in asked:
        record(runs, request(run=name, stage=stage, num_sources=num_sources))
        kept = {summary.run: runs.detail(summary.run).points for summary in runs.summaries().runs}
        assert runs.num_readings == sum(len(point.sources) for points in kept.values() for point in points) <= 20
        assert len(kept) <= 3
        assert kept[name][-1].stage_index == stage
        assert all(points == sorted(points, key=lambda point: point.position) for points in kept.values())


def test_one_request_larger_than_the_memory_is_kept_alone():
    runs = RecentRuns(max_readings=5)
    for stage in range(3):
        record(runs, request(stage=stage, num_sources=8))
    assert positions(runs) == [(0, 2)]
