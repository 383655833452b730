"""The service without Ray: every answer it can give, and that it never gives a 500."""

import asyncio
import json
import logging
import math
import threading

import httpx
import pytest
from fake_service import SHA256, Changed, LossProportional, changed, client, example, post, shaken

from proxymix.types import Decision, SourceReading
from services.app import build_app
from services.schemas import DecisionRequest


@pytest.fixture(scope="module")
def service():
    return client()


def test_answers_the_contract(service):
    answer = post(service, example())
    assert answer.status_code == 200
    assert answer.json() == {
        "weights": pytest.approx({"safety": 1.52 / 6.85, "code": 2.58 / 6.85, "math": 2.75 / 6.85}),
        "replay_share": pytest.approx(4.10 / 6.85),
        "controller": {"name": "fake", "sha256": SHA256},
        "request_id": "run7/seed0/task2/stage1",
    }


def test_request_survives_the_wire():
    boundary = DecisionRequest.model_validate(example()).to_boundary()
    assert boundary.current == SourceReading("math", "current", (2.20, 1.75))
    assert DecisionRequest.from_boundary(boundary, "r").model_dump(exclude_defaults=True) == {**example(), "request_id": "r"}


@pytest.mark.parametrize("architecture", ["equivariant", "flat"])
def test_age_may_be_left_out_and_then_is_0(architecture):
    plain, fresh, old = example(), example(), example()
    for source in fresh["sources"]:
        source |= {"age": 0, "interval": 1}
    old["sources"][1] |= {"age": 1, "interval": 2}
    controller = shaken(architecture)
    answers = [post(client(controller), body).json()["weights"] for body in (plain, fresh, old)]
    assert answers[0] == answers[1] != answers[2]
    boundary = DecisionRequest.model_validate(old).to_boundary()
    assert (boundary.sources[1].age, boundary.sources[1].interval) == (1, 2)
    assert DecisionRequest.from_boundary(boundary, old["request_id"]).model_dump(exclude_defaults=True) == old


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (["sources", 0, "losses", 1], math.nan, "sources.0.losses.1"),
        (["sources", 0, "losses", 1], math.inf, "sources.0.losses.1"),
        (["sources", 0, "losses", 1], -0.1, "sources.0.losses.1"),
        (["sources", 0, "losses", 1], "0.4", "sources.0.losses.1"),
        (["sources", 0, "losses", 1], True, "sources.0.losses.1"),
        (["sources", 0, "losses", 1], 10**400, "sources.0.losses.1"),
        (["sources", 0, "losses"], [], "sources.0.losses"),
        (["sources", 0, "losses"], [0.0] * 10_001, "sources.0.losses"),
        (["sources", 0, "losses"], ..., "sources.0.losses"),
        (["sources", 0, "age"], -1, "sources.0.age"),
        (["sources", 0, "age"], 3, "sources.0.age"),
        (["sources", 0, "age"], 0.5, "sources.0.age"),
        (["sources", 0, "interval"], 0, "sources.0.interval"),
        (["sources", 0, "reference_loss"], -math.inf, "sources.0.reference_loss"),
        (["sources", 0, "reference_loss"], ..., "sources.0.reference_loss"),
        (["sources", 1, "reference_loss"], None, "sources.1.reference_loss"),
        (["sources", 2, "reference_loss"], 1.0, "sources.2.reference_loss"),
        (["sources", 0, "role"], "future", "sources.0.role"),
        (["sources", 0, "name"], "", "sources.0.name"),
        (["sources", 0, "name"], "x" * 129, "sources.0.name"),
        (["sources", 0, "name"], "code", "sources"),
        (["sources", 0, "name"], "\ud800", "sources.0.name"),
        (["sources", 2], ..., "sources"),
        (["sources", 0], {"name": "x", "role": "current", "losses": [1.0]}, "sources"),
        (["sources"], [], "sources"),
        (["sources"], {}, "sources"),
        (["sources", 1, "future_losses"], [1.0], "sources.1.future_losses"),
        (["next_task"], "law", "next_task"),
        (["\ud800"], 1, "body"),
        (["task_index"], -1, "task_index"),
        (["task_index"], 1.5, "task_index"),
        (["task_index"], 10**30, "task_index"),
        (["stage_index"], -1, "stage_index"),
        (["stage_index"], 4, "num_stages"),
        (["num_stages"], 0, "num_stages"),
        (["request_id"], "", "request_id"),
        (["request_id"], ..., "request_id"),
    ],
)
def test_invalid_request_is_422_naming_the_field(service, path, value, field):
    answer = post(service, changed(path, value))
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"][0]["field"] == field
    assert problem["detail"].startswith(field)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"NaN", b"\xff\xfe", b"[" * 100_000, b'{"task_index": ' + b"9" * 5000 + b"}"])
def test_body_that_is_no_request_is_refused(service, body):
    assert post(service, body).status_code in (400, 422)


def test_body_without_its_content_type_is_told(service):
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = service.post("/v1/decisions", content=json.dumps(example()), headers=headers)
        assert (answer.status_code, "Content-Type: application/json" in answer.json()["detail"]) == (422, True)


def test_thousands_of_faults_get_a_short_answer(service):
    answer = post(service, changed(["sources", 0, "losses"], [math.nan] * 5000))
    assert answer.status_code == 422
    assert len(answer.content) < 10_000


def test_too_many_sources_for_a_flat_controller():
    assert post(client(Changed(max_sources=3)), example()).status_code == 200
    answer = post(client(Changed(max_sources=2)), example())
    assert (answer.status_code, answer.json()["errors"]) == (
        422,
        [{"field": "sources", "message": "this controller takes at most 2 sources, got 3"}],
    )
    assert post(client(max_sources_per_request=2), example()).status_code == 422


def test_large_body_is_413_with_and_without_content_length():
    service = client(max_body_bytes=1000)
    assert post(service, example()).status_code == 200
    large = json.dumps(changed(["request_id"], "x" * 1000)).encode()
    assert post(service, large).status_code == 413
    assert service.post("/v1/decisions", content=iter([large[:700], large[700:]])).status_code == 413
    # `b"\xb2"` is a digit to Python and no number; the fuzz of a hundred thousand found it.
    assert post(service, example(), **{"Content-Length": b"\xb2"}).status_code == 200


def test_token_guards_everything_under_v1():
    service = client(token="sesame")
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Bearer \xff"}, {"Authorization": "Basic x"}):
        answer = post(service, example(), **header)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert service.get("/v1/controller", headers=header).status_code == 401
    assert service.get("/healthz").status_code == 200
    assert post(service, example(), Authorization="Bearer sesame").status_code == 200
    assert service.get("/v1/controller", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_card_health_docs_and_unknown_paths(service):
    assert service.get("/v1/controller").json() == {"architecture": "equivariant", "seed": 3, "name": "fake", "sha256": SHA256}
    assert service.get("/healthz").json() == {"status": "ok"}
    assert service.get("/docs").status_code == 200
    assert "DecisionRequest" in service.get("/openapi.json").text
    assert service.get("/v2").json()["status"] == 404
    assert service.get("/v1/decisions").status_code == 405


def raising(boundary):
    raise RuntimeError("the secret inside")


@pytest.mark.parametrize(
    "decide",
    [
        raising,
        lambda boundary: Decision({"math": 1.0}, "fake", SHA256),
        lambda boundary: Decision(dict.fromkeys(boundary.names, 0.5), "fake", SHA256),
        lambda boundary: Decision({"safety": math.nan, "code": 0.5, "math": 0.5}, "fake", SHA256),
        lambda boundary: Decision({"safety": -0.5, "code": 0.5, "math": 1.0}, "fake", SHA256),
        lambda boundary: None,
    ],
)
def test_broken_controller_is_a_logged_503_without_internals(decide, caplog):
    answer = post(client(Changed(decide=decide)), example())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "secret" not in answer.text
    assert "run7/seed0/task2/stage1" in caplog.text
    assert "Traceback" in caplog.text


def test_controller_without_hash_is_not_served():
    with pytest.raises(ValueError, match="has no sha256"):
        client(Changed(sha256=None))


def test_access_log_is_one_json_line_per_request(service, caplog):
    with caplog.at_level(logging.INFO, logger="services.app"):
        post(service, changed(["request_id"], 'a"\n'))
        post(service, changed(["num_stages"], 0))
    lines = [json.loads(record.message) for record in caplog.records if record.name == "services.app"]
    assert [(line["status"], line["request_id"], line["path"]) for line in lines] == [(200, 'a"\n', "/v1/decisions"), (422, None, "/v1/decisions")]


def test_overload_is_503_with_retry_after_and_passes():
    entered, release = threading.Semaphore(0), threading.Event()

    def slow(boundary):
        entered.release()
        release.wait(10)
        return LossProportional().decide(boundary)

    async def scenario():
        transport = httpx.ASGITransport(build_app(Changed(decide=slow), token=None, max_in_flight=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            running = [asyncio.create_task(http.post("/v1/decisions", json=example())) for _ in range(2)]
            for _ in running:
                assert await asyncio.to_thread(entered.acquire, timeout=10)
            refused = await http.post("/v1/decisions", json=example())
            healthy = await http.get("/healthz")
            release.set()
            served = [await task for task in running]
            return refused, healthy, served, await http.post("/v1/decisions", json=example())

    refused, healthy, served, after = asyncio.run(scenario())
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert [answer.status_code for answer in (healthy, *served, after)] == [200, 200, 200, 200]


@pytest.mark.parametrize(("quick_losses", "in_thread"), [(0, True), (7, True), (8, False)])
def test_a_decision_on_few_losses_needs_no_thread(quick_losses, in_thread):
    """The example has eight."""
    threads = []

    class Telling(LossProportional):
        def decide(self, boundary):
            threads.append(threading.current_thread().name)
            return super().decide(boundary)

    assert post(client(Telling(), quick_losses=quick_losses), example()).status_code == 200
    assert [name.startswith("decision") for name in threads] == [in_thread]
