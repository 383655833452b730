"""A config update on real Ray Serve: other controllers, the same replicas, no request lost; a slip leaves what works."""

import re
import shutil
import threading
import time
import warnings
from pathlib import Path

import httpx
import pytest
import yaml
from fake_service import example, save
from own_ray import own_ray

from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.service_config import ServedControllerConfig, ServiceConfig
from proxymix.telemetry import DECISIONS, DECISIONS_IN_FLIGHT, REQUEST_SECONDS, REQUESTS
from services.client import ServiceController
from services.schemas import DecisionRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    from services.deployment import deploy, undeploy
    from services.replica import application

from test_serve import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
ROOT = Path(__file__).resolve().parents[1]
BOUNDARY = DecisionRequest.model_validate(example()).to_boundary()


@pytest.fixture(scope="module")
def cluster():
    with own_ray(2):
        yield


@pytest.fixture
def folders(tmp_path):
    return {name: (tmp_path / name, save(tmp_path / name, shift, "mix")) for name, shift in (("a", 0.1), ("b", 0.2))}


def replicas():
    return sorted(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in actor["name"])


class Traffic(threading.Thread):
    """Asks without a pause and without a retry, until stopped; keeps every answer's hash."""

    def __init__(self, url, path="/v1/decisions"):
        super().__init__(daemon=True)
        self.url, self.path, self.seen, self.stopping = url, path, [], threading.Event()

    def run(self):
        with httpx.Client(base_url=self.url, timeout=30) as http:
            while not self.stopping.is_set():
                answer = http.post(self.path, json=example())
                self.seen.append(answer.json()["controller"]["sha256"] if answer.status_code == 200 else answer.status_code)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join(60)


def test_controllers_are_swapped_under_traffic_without_a_restart_or_a_lost_request(cluster, folders):
    (a, sha_a), (b, sha_b) = folders["a"], folders["b"]
    service = ServiceConfig(port=free_port(), num_replicas=2)
    url = deploy(a, service)
    try:
        before = replicas()
        with ServiceController(url, service, run="old", fallback=UniformReplay(0.3)) as running, Traffic(url) as traffic:
            assert running.decide(BOUNDARY).sha256 == sha_a
            deploy(b, service.model_copy(update={"controllers": [ServedControllerConfig(path=str(a))]}))
            assert running.decide(BOUNDARY).sha256 == sha_a  # Pinned, and kept as the older version.
            while traffic.seen[-1:] != [sha_b]:
                assert traffic.is_alive()
            with pytest.raises(UserError, match="cannot read"):
                deploy(a.with_name("nowhere"), service)
        assert set(traffic.seen) == {sha_a, sha_b}
        assert replicas() == before
    finally:
        undeploy()


def test_what_is_served_at_the_root_beside_a_run_takes_nothing_from_it(cluster, folders):
    (a, sha_a), (b, sha_b) = folders["a"], folders["b"]
    service = ServiceConfig(port=free_port())
    try:
        with Traffic(deploy(a, service, "run", route_prefix="/run")) as traffic:
            with Traffic(deploy(b, service, "run-alone")) as beside:
                while not beside.seen:
                    assert beside.is_alive()
            undeploy("run-alone")
            asked = len(traffic.seen)
            while len(traffic.seen) < asked + 2:
                assert traffic.is_alive()
        assert (set(traffic.seen), set(beside.seen)) == ({sha_a}, {sha_b})
    finally:
        undeploy("run-alone")
        undeploy("run")


def exported(expected, timeout_s=90.0):
    """Names of our metrics where Prometheus would read them, when all that are expected are there; Ray's agent passes them on every few seconds."""
    (node,) = ray.nodes()
    address, deadline = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", time.monotonic() + timeout_s
    while True:
        names = set(re.findall(r"^(ray_proxymix_\w+)", httpx.get(address).text, re.MULTILINE))
        if expected <= names or time.monotonic() > deadline:
            return names
        time.sleep(1)


def test_what_the_dashboard_asks_for_is_exported(cluster, folders):
    expected = {name for metric in (DECISIONS, REQUESTS, REQUEST_SECONDS, DECISIONS_IN_FLIGHT) for name in metric.exported}
    service = ServiceConfig(port=free_port())
    url = deploy(folders["a"][0], service)
    try:
        with ServiceController(url, service, run="r", fallback=UniformReplay(0.3)) as running:
            running.decide(BOUNDARY)
            assert expected - exported(expected) == set()
    finally:
        undeploy()


def test_the_config_file_deploys_updates_and_survives_a_slip(cluster, folders):
    (a, sha_a), (b, sha_b) = folders["a"], folders["b"]
    config = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    config["http_options"]["port"] = free_port()
    (app,) = config["applications"]
    app["args"], app["runtime_env"] = {"open": True}, {}
    (deployment,) = app["deployments"]
    deployment["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1}

    def apply(path):
        deployment["user_config"] = {"controllers": [{"path": str(path)}]}
        serve.start(http_options={"host": "127.0.0.1", "port": config["http_options"]["port"]})
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=True)

    with httpx.Client(base_url=f"http://127.0.0.1:{config['http_options']['port']}", timeout=30) as http:
        try:
            apply(a)
            before = replicas()
            with Traffic(str(http.base_url)) as traffic:
                apply(b)
                assert listed_when(http, lambda listed: listed["controllers"][0]["sha256"] == sha_b)["reload_error"] is None
                shutil.rmtree(a)
                apply(a)
                listed = listed_when(http, lambda listed: listed["reload_error"] is not None)
                assert ([one["sha256"] for one in listed["controllers"]], "cannot read" in listed["reload_error"]) == ([sha_b], True)
            assert set(traffic.seen) == {sha_a, sha_b}
            assert replicas() == before
        finally:
            undeploy()


def listed_when(http, condition, timeout_s=60.0):
    """GET /v1/controllers once `condition` holds: Serve may call an application running a moment before its replicas took an update over."""
    deadline = time.monotonic() + timeout_s
    while not condition(listed := http.get("/v1/controllers").json()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return listed


def test_an_application_is_open_only_when_told_so():
    for args in ({}, {"open": True, "token_env": "A"}, {"token_env": "A", "token_file": "b"}, {"token": "sesame"}):
        with pytest.raises(UserError, match=r"args: .*token_env"):
            application(args)
