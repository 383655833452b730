"""One real Ray Serve deployment of a frozen controller: it answers, refuses, tells its log, survives a lost replica, and leaves nothing behind."""

import json
import socket
import statistics
import time
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from cable import Cable
from own_ray import own_ray

from proxymix.config import ServiceConfig
from proxymix.controllers.baselines import UniformReplay
from proxymix.controllers.frozen import FrozenController, save_controller
from proxymix.controllers.policy import initial_parameters
from proxymix.errors import UserError
from proxymix.types import SourceReading, StageBoundary
from services.client import ServiceController, check_reachable
from services.schemas import DecisionRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    import ray

    from services.deployment import deploy, undeploy

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]

TOKEN = "open-sesame-5b1f0c"
BOUNDARY = StageBoundary(
    task_index=2,
    stage_index=1,
    num_stages=4,
    sources=(
        SourceReading("safety", "anchor", (0.41, 0.45, 0.52), 0.40),
        SourceReading("code", "past", (1.90, 1.31, 1.58), 1.31),
        SourceReading("math", "current", (2.20, 1.75)),
    ),
)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controller")
    parameters = initial_parameters("equivariant", 0, 6, np.random.default_rng(0))
    parameters = {key: value + 0.1 for key, value in parameters.items()}
    save_controller(folder, parameters, name="served", architecture="equivariant", facts={"seed": 0})
    return folder


@pytest.fixture(scope="module")
def cluster():
    with own_ray(2):
        yield


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("A_TOKEN", TOKEN)
    return ServiceConfig(port=free_port(), token_env="A_TOKEN")


def controller(url, service):
    return ServiceController(url, service, run="test", fallback=UniformReplay(0.3))


def kill_replica():
    names = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in actor["name"]]
    assert len(names) == 1
    ray.kill(ray.get_actor(**names[0]))


def answers_again(client, expected, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while client.decide(BOUNDARY) != expected:
        if time.monotonic() > deadline:
            return False
    return True


def test_serves_refuses_recovers_and_leaves_nothing(cluster, folder, service):
    expected = FrozenController.load(folder).decide(BOUNDARY)
    url = deploy(folder, service)
    try:
        assert check_reachable(url, service).sha256 == expected.sha256
        assert httpx.get(f"{url}/v1/controller").status_code == 401
        with controller(url, service) as client:
            assert client.decide(BOUNDARY) == expected
            assert "frame-ancestors" in httpx.get(f"{url}/").headers["content-security-policy"]
            assert httpx.get(f"{url}/page/page.js").status_code == 200
            assert client.connection.http.get("/v1/runs/test").json()["points"][0]["sources"][0]["name"] == "safety"
            check_log(client)
            print_latency(client)
            check_cut_network(service, FrozenController.load(folder))
            kill_replica()
            assert answers_again(client, expected)
        other_port = service.model_copy(update={"port": free_port()})
        with pytest.raises(UserError, match=f"already listens on 127.0.0.1:{service.port}"):
            deploy(folder, other_port)
        assert deploy(folder, service) == url
    finally:
        undeploy()
    assert not is_listening(service.port)


def check_log(client):
    """A request leaves its line in Serve's own log files; the token, which came with it, is in no file that Ray writes."""
    body = DecisionRequest.from_boundary(BOUNDARY, "for-the-log").model_dump_json(exclude_none=True)
    headers = {"Content-Type": "application/json", "X-Request-ID": "of-the-caller"}
    assert client.connection.http.post("/v1/decisions", content=body, headers=headers).status_code == 200
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    deadline = time.monotonic() + 60
    while not (lines := [line for file in logs.glob("serve/**/*.log") for line in file.read_text().splitlines() if "of-the-caller" in line]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (line,) = lines
    told = json.loads(line[line.index("{") :])
    assert {key: told[key] for key in ("method", "path", "status", "request_id", "id")} == {
        "method": "POST",
        "path": "/v1/decisions",
        "status": 200,
        "request_id": "for-the-log",
        "id": "of-the-caller",
    }
    assert told["controller"].startswith("served@")
    files = [file for file in logs.rglob("*") if file.is_file()]
    assert files
    assert [file for file in files if TOKEN.encode() in file.read_bytes()] == []


def check_cut_network(service, frozen):
    """Three tasks of two stages; nothing comes through during the second, on connections that stand or on new ones."""
    hasty, fallback = service.model_copy(update={"timeout_s": 3.0, "retries": 1}), UniformReplay(0.3)
    with closing(Cable(service.port)) as cable, controller(f"http://127.0.0.1:{cable.port}", hasty) as client:
        for task_index in range(3):
            is_cut = task_index == 1
            (cable.pull if is_cut else cable.plug)()
            for stage_index in range(2):
                boundary = replace(BOUNDARY, task_index=task_index, stage_index=stage_index)
                decision = client.decide(boundary)
                assert replace(decision, fallback=None) == (fallback if is_cut else frozen).decide(boundary)
                assert ("ReadTimeout" in (decision.fallback or "")) == is_cut, decision


def print_latency(client):
    milliseconds = []
    for _ in range(50):
        start = time.perf_counter()
        client.decide(BOUNDARY)
        milliseconds.append(1000 * (time.perf_counter() - start))
    print(f"decision over HTTP: p50 {statistics.median(milliseconds):.1f} ms")


def test_a_taken_port_is_told_before_anything_starts(cluster, folder, service):
    with socket.socket() as other:
        other.bind(("127.0.0.1", service.port))
        other.listen()
        with pytest.raises(UserError, match=rf"service.port: 127.0.0.1:{service.port} is taken"):
            deploy(folder, service)
    undeploy()
    assert not is_listening(service.port)


def test_a_broken_folder_is_told_before_anything_starts(tmp_path, service):
    with pytest.raises(UserError, match="controller"):
        deploy(tmp_path, service)


def test_without_ray_the_remedy_is_told(folder, service, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="Ray is not connected"):
        deploy(folder, service)
