"""Runs come and go while the service is redeployed and replicas are killed in the middle of it: no decision is lost, no run falls back or changes
controller half-way."""

import os
import signal
import threading
import time
import warnings
from contextlib import contextmanager

import pytest
from fake_service import example, save
from own_ray import own_ray

from proxymix.controllers.baselines import UniformReplay
from proxymix.service_config import ServedControllerConfig, ServiceConfig
from services.client import ServiceController
from services.schemas import DecisionRequest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    import ray
    from ray.serve.context import _get_global_client

    from services import deployment

from test_serve import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
BOUNDARY = DecisionRequest.model_validate(example()).to_boundary()
DECISIONS_PER_RUN = 5
TIME_LIMIT_S = 180.0
PATIENT = 24
"""Retries, of some 100 s: Serve believes that its proxy is dead after three questions, ten seconds apart, and starts another."""


@pytest.fixture
def cluster():
    with own_ray(2):
        yield


class Runs(threading.Thread):
    """Target runs one after another, each asking through the client as a real one does; keeps what each heard."""

    def __init__(self, url, service):
        super().__init__(daemon=True)
        self.url, self.service, self.stopping = url, service, threading.Event()
        self.heard, self.failures = [], []

    def run(self):
        while not self.stopping.is_set():
            with ServiceController(self.url, self.service, run=f"run{len(self.heard)}", fallback=UniformReplay(0.3)) as controller:
                try:
                    decisions = [controller.decide(BOUNDARY) for _ in range(DECISIONS_PER_RUN)]
                except Exception as error:  # Whatever it is, it is what must not happen.
                    self.failures.append(repr(error))
                    continue
            self.heard.append({decision.sha256 for decision in decisions})
            self.failures += [decision.fallback for decision in decisions if decision.fallback]


def replica_pids():
    """Processes of the replicas that run now."""
    (app,) = _get_global_client().get_serve_details()["applications"].values()
    (deployment,) = app["deployments"].values()
    return {replica["pid"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"}


def wait_for(condition):
    deadline = time.monotonic() + TIME_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def killing(number, monkeypatch):
    """So many replicas are killed as soon as Serve has been told to deploy, before it has; yields which."""
    killed, wait_running = set(sorted(replica_pids())[:number]), deployment._wait_running

    def wait(app_name, deadline):
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        wait_running(app_name, deadline)

    with monkeypatch.context() as patch:
        patch.setattr(deployment, "_wait_running", wait)
        yield killed


def test_no_decision_is_lost_while_replicas_are_killed_and_the_config_is_redeployed(cluster, tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    hashes = {first: save(first, 0.1, "mix"), second: save(second, 0.2, "mix")}
    service, code = ServiceConfig(port=free_port(), num_replicas=2), ["as it is"]
    monkeypatch.setattr(deployment, "code_version", lambda token: code[-1])
    url = deployment.deploy(first, service)
    traffic = [Runs(url, service) for _ in range(3)]
    try:
        for runs in traffic:
            runs.start()
        for number, default, other, version in ((1, second, first, "as it is"), (1, first, second, "changed"), (2, second, first, "changed")):
            code.append(version)
            before = replica_pids()
            with killing(number, monkeypatch) as killed:
                deployment.deploy(default, service.model_copy(update={"controllers": [ServedControllerConfig(path=str(other))]}))
            gone = killed if code[-2] == version else before  # What runs takes over other controllers, but no other code.
            wait_for(lambda gone=gone: len(pids := replica_pids()) == 2 and not pids & gone)
            assert before - gone <= replica_pids()
            heard = [len(runs.heard) for runs in traffic]
            wait_for(lambda heard=heard: all(len(runs.heard) > count + 1 for runs, count in zip(traffic, heard, strict=True)))
            assert all(runs.heard[-1] == {hashes[default]} for runs in traffic)
    finally:
        for runs in traffic:
            runs.stopping.set()
        for runs in traffic:
            runs.join(TIME_LIMIT_S)
        deployment.undeploy()
    assert [failure for runs in traffic for failure in runs.failures] == []
    heard = [hashes_of_run for runs in traffic for hashes_of_run in runs.heard]
    assert all(len(hashes_of_run) == 1 for hashes_of_run in heard)
    assert set().union(*heard) == set(hashes.values())


def pids(name):
    """Of Serve's own actors whose names begin so."""
    return {actor["Pid"] for actor in ray._private.state.actors().values() if actor["Name"].startswith(name) and actor["State"] == "ALIVE"}


@pytest.mark.parametrize(("name", "retries"), [("SERVE_CONTROLLER", 0), ("SERVE_PROXY", PATIENT)])
def test_no_decision_is_lost_when_serves_own_processes_die(cluster, tmp_path, name, retries):
    sha256 = save(tmp_path, 0.1)
    service = ServiceConfig(port=free_port(), retries=retries)
    runs = Runs(deployment.deploy(tmp_path, service), service)

    def go_on():
        heard = len(runs.heard)
        wait_for(lambda: runs.failures or len(runs.heard) > heard + 1)

    try:
        runs.start()
        go_on()
        before, (pid,) = replica_pids(), pids(name)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: (now := pids(name)) and pid not in now)
        go_on()
        wait_for(lambda: replica_pids() == before)  # None goes with them.
    finally:
        runs.stopping.set()
        runs.join(TIME_LIMIT_S)
        deployment.undeploy()
    assert runs.failures == []
    assert all(heard == {sha256} for heard in runs.heard)
