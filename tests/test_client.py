"""The client: a service that is away costs retries and then the fallback; one that says no, or changes, stops the run."""

import json
import math
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import httpx
import pytest
from fastapi.testclient import TestClient

import services.connection
from proxymix.config import ServiceConfig
from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.types import Decision, SourceReading, StageBoundary
from services.app import build_app
from services.client import ServiceController, check_reachable

URL = "http://service"
BOUNDARY = StageBoundary(
    task_index=2,
    stage_index=1,
    num_stages=4,
    sources=(
        SourceReading("safety", "anchor", (0.4, 0.5), 0.4),
        SourceReading("code", "past", (1.3,), 1.2),
        SourceReading("math", "current", (2.0,)),
    ),
)


def answer(sha256="ab" * 32, weights=None):
    weights = weights or {"math": 0.5, "code": 0.25, "safety": 0.25}
    return httpx.Response(200, json={"weights": weights, "replay_share": 0.5, "controller": {"name": "served", "sha256": sha256}, "request_id": "r"})


class Script:
    """A network that plays back responses (or raises exceptions), the last one for ever; keeps the requests and the sleeps."""

    def __init__(self, *steps):
        self.steps, self.requests, self.slept = list(steps), [], []
        self.transport = httpx.MockTransport(self.play)

    def play(self, request):
        self.requests.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        # A response can be read once; the last one is played again and again.
        return httpx.Response(step.status_code, headers=step.headers, content=step.content)

    def controller(self, retries=3, sha256=None, **service):
        config = ServiceConfig(retries=retries, **service)
        return ServiceController(
            URL, config, run="demo/proxymix/seed0", fallback=UniformReplay(0.3), sha256=sha256, transport=self.transport, sleep=self.slept.append
        )


def test_tells_how_many_decisions_the_fallback_made_since_the_last_answer():
    script = Script(httpx.ConnectError("refused"), httpx.ConnectError("refused"), answer(), answer())
    with script.controller(retries=0) as controller:
        fallbacks = [controller.decide(BOUNDARY).fallback is not None for _ in range(4)]
    assert fallbacks == [True, True, False, False]
    assert [request.headers.get("X-Proxymix-Fallbacks") for request in script.requests] == [None, "1", "2", None]


def test_asks_with_a_request_id_and_returns_the_decision():
    script = Script(answer())
    with script.controller() as controller:
        decision = controller.decide(BOUNDARY)
    assert decision == Decision({"safety": 0.25, "code": 0.25, "math": 0.5}, "served", "ab" * 32)
    assert tuple(decision.weights) == BOUNDARY.names
    body = json.loads(script.requests[0].content)
    assert body["request_id"] == "demo/proxymix/seed0/task2/stage1"
    assert "reference_loss" not in body["sources"][2]
    assert script.slept == []


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("gone"),
        *map(httpx.Response, (404, 429, 500, 502, 503, 504)),
    ],
)
def test_a_passing_absence_costs_only_time(failure):
    script = Script(failure, failure, answer())
    assert script.controller().decide(BOUNDARY).fallback is None
    assert len(script.slept) == 2
    assert len({request.content for request in script.requests}) == 1
    first, second = script.slept
    assert 0 < first < second < 1


@pytest.mark.parametrize(
    ("failure", "reason"), [(httpx.ConnectError("refused"), "ConnectError: refused"), (httpx.Response(503), "503 Service Unavailable")]
)
def test_a_lasting_absence_gives_the_recorded_fallback(failure, reason):
    script = Script(failure)
    decision = script.controller(retries=2).decide(BOUNDARY)
    assert decision.weights == pytest.approx({"safety": 0.15, "code": 0.15, "math": 0.7})
    assert decision.controller == "random_30"
    assert decision.sha256 is None
    assert decision.fallback == f"controller service away: {reason}"
    assert len(script.requests) == 3


@pytest.fixture
def trickle():
    """The address of a service that says the first half of its answer at once, and a byte of the second every 50 ms."""
    listeners = []

    def start(content, at):
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve():
            with suppress(OSError), listener.accept()[0] as caller:
                caller.recv(65536)
                caller.sendall(content[:at])
                for byte in content[at:]:
                    caller.sendall(bytes([byte]))
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def test_an_answer_that_trickles_in_ends_with_the_attempt(trickle):
    body = answer().content
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    url = trickle(head + body, len(head) + 5)
    with ServiceController(url, ServiceConfig(timeout_s=3, retries=0), run="r", fallback=UniformReplay(0.3)) as controller:
        assert str(controller.decide(BOUNDARY).fallback) == "controller service away: no whole answer within 3 s"


def test_an_answer_without_end_is_no_controllers(monkeypatch):
    monkeypatch.setattr(services.connection, "MAX_ANSWER_BYTES", 10_000)
    parts = iter([b"x" * 1000] * 1000)
    script = SimpleNamespace(transport=httpx.MockTransport(lambda request: httpx.Response(200, content=parts)), slept=[])
    with pytest.raises(UserError, match=r"service\.url: .* answered with more than 10000 bytes"):
        Script.controller(script).decide(BOUNDARY)
    assert len(list(parts)) > 900


def test_comes_back_after_a_fallback():
    script = Script(httpx.Response(503), answer())
    controller = script.controller(retries=0)
    assert controller.decide(BOUNDARY).fallback is not None
    assert controller.decide(BOUNDARY).fallback is None


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("0", 0, 1),
        ("9999", 30, 30),
        pytest.param(format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 30, 30, id="tomorrow"),
        pytest.param(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True), 0, 1, id="yesterday"),
        ("soon", 0, 1),
        ("-5", 0, 1),
        ("nan", 0, 1),
    ],
)
def test_retry_after_is_honoured_within_reason(header, low, high):
    script = Script(httpx.Response(503, headers={"Retry-After": header}), answer())
    script.controller().decide(BOUNDARY)
    assert low <= script.slept[0] <= high


def test_back_off_is_bounded():
    script = Script(httpx.Response(503))
    script.controller(retries=20).decide(BOUNDARY)
    assert max(script.slept) <= 5.5


@pytest.mark.parametrize("status", [301, 400, 401, 403, 413, 422])
def test_a_refusal_stops_the_run_at_once(status):
    script = Script(httpx.Response(status, json={"detail": "sources.0: wrong"}))
    with pytest.raises(UserError, match=rf"service.url.*{status}.*sources.0: wrong"):
        script.controller().decide(BOUNDARY)
    assert len(script.requests) == 1


def test_another_controller_half_way_is_refused():
    script = Script(answer(), httpx.Response(503), answer(), answer(sha256="cd" * 32))
    controller = script.controller(retries=0)
    for _ in range(3):
        controller.decide(BOUNDARY)
    with pytest.raises(UserError, match=f"from sha256 {'ab' * 32} to {'cd' * 32}"):
        controller.decide(BOUNDARY)


def test_another_controller_than_the_pinned_is_refused():
    with pytest.raises(UserError, match="controller changed"):
        Script(answer()).controller(sha256="cd" * 32).decide(BOUNDARY)


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"weights": {}}),
        answer(weights={"math": 1.0}),
        answer(weights={"math": 0.5, "code": 0.5, "safety": 0.5}),
        answer(weights={"math": 0.5, "code": 0.25, "law": 0.25}),
        answer(sha256="short"),
    ],
)
def test_an_answer_that_is_no_decision_stops_the_run(response):
    with pytest.raises(UserError, match="no decision"):
        Script(response).controller().decide(BOUNDARY)


def test_a_diverged_run_is_told_without_a_request():
    script = Script(answer())
    boundary = StageBoundary(0, 3, 4, (SourceReading("math", "current", (2.0, math.nan)),))
    with pytest.raises(UserError, match=r"task0/stage3: losses.1: .*finite number, got nan; did the training diverge"):
        script.controller().decide(boundary)
    assert script.requests == []


def test_token_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "sesame")
    script = Script(answer())
    script.controller(token_env="A_TOKEN").decide(BOUNDARY)
    assert script.requests[0].headers["Authorization"] == "Bearer sesame"
    monkeypatch.delenv("A_TOKEN")
    with pytest.raises(UserError, match=r"service.token_env: environment variable 'A_TOKEN' is not set"):
        script.controller(token_env="A_TOKEN")
    monkeypatch.setenv("A_TOKEN", "sesame\n")
    with pytest.raises(UserError, match="printable ASCII"):
        script.controller(token_env="A_TOKEN")


def test_check_reachable_names_the_controller():
    script = Script(httpx.Response(503), httpx.Response(200, json={"name": "served", "sha256": "ab" * 32, "seed": 1}))
    reference = check_reachable(URL, ServiceConfig(), transport=script.transport, sleep=script.slept.append)
    assert (reference.name, reference.sha256) == ("served", "ab" * 32)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (httpx.ConnectError("refused"), "service.url: http://service is not reachable"),
        (httpx.Response(404), "not reachable"),
        (httpx.Response(401), "service.token_env"),
        (httpx.Response(200, text="<html>"), "not as a controller service"),
        (httpx.Response(200, json=[1]), "not as a controller service"),
        (httpx.Response(200, json={"name": "x"}), "not as a controller service"),
    ],
)
def test_check_reachable_tells_what_is_wrong(failure, message):
    script = Script(failure)
    with pytest.raises(UserError, match=message):
        check_reachable(URL, ServiceConfig(retries=1), transport=script.transport, sleep=script.slept.append)


@pytest.mark.parametrize("url", ["service:8123", "ftp://service", "http://service:port", ""])
def test_a_malformed_address_is_told(url):
    with pytest.raises(UserError, match=r"service.url: must"):
        check_reachable(url, ServiceConfig(retries=0), sleep=lambda _: None)


def test_client_and_application_agree():
    class Uniform(UniformReplay):
        sha256, card, max_sources = "ef" * 32, {}, None

        def decide(self, boundary):
            return Decision(super().decide(boundary).weights, "uniform", self.sha256)

    with TestClient(build_app(Uniform(0.4), token=None)) as application:

        def forward(request):
            served = application.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
            return httpx.Response(served.status_code, content=served.content)

        transport = httpx.MockTransport(forward)
        assert check_reachable(URL, ServiceConfig(), transport=transport).sha256 == "ef" * 32
        controller = ServiceController(URL, ServiceConfig(), run="r", fallback=UniformReplay(0.0), transport=transport)
        assert controller.decide(BOUNDARY) == Uniform(0.4).decide(BOUNDARY)
