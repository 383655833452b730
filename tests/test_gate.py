"""What every request passes: token before body, sizes, deadlines, a name in the log; and the pool that refuses rather than queues."""

import asyncio
import json
import logging
import threading

import httpx
import pytest
from fake_service import Changed, LossProportional, client, example, post
from fastapi.testclient import TestClient

from proxymix.errors import UserError
from proxymix.service_config import ServiceConfig
from services.app import build_app
from services.gate import DecisionPool
from services.token import bearer_token, is_authorized


def test_everything_but_the_open_paths_needs_the_token():
    service = client(token="sesame")
    for path in ("/healthz", "/health/live", "/health/ready", "/openapi.json", "/docs"):
        assert service.get(path).status_code == 200
    for path in ("/v1/controller", "/v1/controllers", "/v1/controllers/fake", "/nowhere", "//v1/controller", "/healthz/", "/V1/controller"):
        assert service.get(path).status_code == 401
    assert service.get("/v1/controllers", headers={"Authorization": "bearer sesame"}).status_code == 200


def test_an_application_beneath_a_path_of_its_own_is_as_open_and_as_closed():
    beneath = TestClient(build_app(LossProportional(), token="sesame"), root_path="/proxymix-demo")
    statuses = {path: beneath.get(f"/proxymix-demo{path}").status_code for path in ("/health/live", "/docs", "/v1/controllers")}
    assert statuses == {"/health/live": 200, "/docs": 200, "/v1/controllers": 401}


def test_a_body_without_the_token_is_not_even_read():
    async def scenario():
        read = []

        async def receive():
            read.append(1)
            return {"type": "http.request", "body": b"{}", "more_body": True}

        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/decisions", "headers": [], "query_string": b"", "http_version": "1.1"}
        await build_app(LossProportional(), token="sesame")(scope, receive, send)
        return read, sent[0]["status"]

    assert asyncio.run(scenario()) == ([], 401)


@pytest.mark.parametrize("header", ["", "sesame", "Bearer", "Bearer ", "Bearer sesam", "Bearer sesamee", "Basic sesame", "Bearer\tsesame"])
def test_only_the_token_is_the_token(header):
    assert not is_authorized(header, "sesame")
    assert is_authorized("Bearer sesame", "sesame")


def test_a_token_may_stand_in_a_file(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("sesame\n")
    assert bearer_token(ServiceConfig(token_file=str(secret))) == "sesame"
    for content in ("", "two words", "café", "two\nlines"):
        secret.write_text(content)
        with pytest.raises(UserError, match=r"service\.token_file"):
            bearer_token(ServiceConfig(token_file=str(secret)))
    with pytest.raises(UserError, match=r"service\.token_file: cannot read .*No such file"):
        bearer_token(ServiceConfig(token_file=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"host": "0.0.0.0"}, "token_env or token_file must be set"),
        ({"host": "::1"}, "host must be a name or an IPv4 address, got ::1"),
        ({"host": "::", "token_env": "A"}, "host must be a name or an IPv4 address, got ::"),
        ({"token_env": "A", "token_file": "b"}, "exclude each other"),
        ({"num_replicas": 3, "max_replicas": 2}, "max_replicas must be at least num_replicas"),
        ({"controller": "../x"}, "controller"),
    ],
)
def test_the_config_is_secure_and_consistent(keys, message):
    with pytest.raises(ValueError, match=message):
        ServiceConfig(**keys)
    assert ServiceConfig(host="0.0.0.0", token_env="A").is_guarded


def test_the_token_is_never_logged(caplog):
    service = client(token="sesame")
    with caplog.at_level(logging.DEBUG):
        post(service, example(), Authorization="Bearer sesame")
        post(service, example(), Authorization="Bearer guess")
    assert "sesame" not in caplog.text
    assert "guess" not in caplog.text


def lines(caplog):
    return [json.loads(record.message) for record in caplog.records if record.name == "services.app"]


def test_every_request_has_an_id_its_own_or_the_callers(caplog):
    service = client()
    with caplog.at_level(logging.INFO, logger="services.app"):
        given = post(service, example(), **{"X-Request-ID": "trace-7"})
        named = post(service, example())
        post(service, example(), **{"X-Request-ID": "x" * 1000})
    assert "x-request-id" not in given.headers  # Whoever gave it knows it, and Serve's proxy repeats it.
    ids = [line["id"] for line in lines(caplog)]
    assert ids[:2] == ["trace-7", named.headers["x-request-id"]]
    assert len(ids[2]) == 32
    assert lines(caplog)[0]["controller"] == "fake@abababababab"


def test_a_declared_size_above_the_limit_is_refused_unread():
    service = client(max_body_bytes=1000)
    answer = service.post("/v1/decisions", content=b"{}", headers={"Content-Length": "99999999999999999999", "Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_slow_body_is_408_and_a_slow_decision_503():
    release = threading.Event()
    slow = Changed(decide=lambda boundary: release.wait(10))

    async def dripping():
        yield b'{"request_id": '
        await asyncio.sleep(10)

    async def scenario():
        transport = httpx.ASGITransport(build_app(slow, token=None, timeout_s=0.2))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            late_body = await http.post("/v1/decisions", content=dripping(), headers={"Content-Type": "application/json"})
            late_decision = await http.post("/v1/decisions", json=example())
            release.set()
            return late_body, late_decision

    late_body, late_decision = asyncio.run(scenario())
    assert (late_body.status_code, late_decision.status_code, late_decision.headers["Retry-After"]) == (408, 503, "1")
    assert late_decision.json()["detail"] == "no decision within 0.2 s; try again"


def test_a_computation_that_outlives_its_request_keeps_its_place():
    release, done = threading.Event(), threading.Event()

    def slow():
        release.wait(10)
        done.set()

    async def scenario():
        pool = DecisionPool(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.run(slow), 0.05)
        with pytest.raises(Exception, match="already being computed"):
            await pool.run(int)
        release.set()
        await asyncio.to_thread(done.wait, 10)
        while True:
            try:
                return await pool.run(int)
            except Exception:
                await asyncio.sleep(0.01)

    assert asyncio.run(scenario()) == 0
