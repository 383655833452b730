"""`proxymix` on a real cluster of this machine, token and all: jobs sent, refused, queued, side by side, stopped, killed and cleaned up after."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from test_cli import ROOT, SMOKE, proxymix
from test_jobs import free_port, rows

from cluster.local import metrics_targets, processes, running
from proxymix.controllers.frozen import FrozenController, save_controller
from proxymix.controllers.policy import initial_parameters

pytestmark = pytest.mark.cluster

TOKEN = "0123456789abcdef0123456789abcdef"
BACK_S = 60.0
"""After a job its CPUs, its processes and its port are free again within so long."""
RAYS_OWN = "_AutoscalingCoordinatorActor"
"""One for a whole cluster, of no CPU: the first job that uses Ray Train starts it, and it stays for the others."""


class Cluster:
    """One that `proxymix cluster start` began, and its commands."""

    def __init__(self, folder, shared):
        self.folder, self.shared, self.port, self.serve_port = folder, shared, free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.environment = {"RAY_AUTH_TOKEN": TOKEN, "RAY_API_SERVER_ADDRESS": self.address, "OMP_NUM_THREADS": "1"}

    def run(self, *arguments, code=0, variables=()):
        result = proxymix(*arguments, environment=self.environment | dict(variables), cwd=self.shared)
        if result.returncode != code:
            pytest.fail(f"{arguments} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result.stdout + result.stderr

    def submit(self, job, name, *arguments, code=0, variables=()):
        roots = [f"runs_root={self.shared / 'runs'}", f"cache_root={self.shared / 'cache'}", f"service.port={self.serve_port}", f"name={name}"]
        return self.run("submit", job, "--config", SMOKE, *roots, *arguments, code=code, variables=variables)

    def stop(self, name):
        """Ends the last job of the run; `BACK_S` after it was asked for nothing of it is left."""
        job, deadline = self.job(name), time.monotonic() + BACK_S
        self.run("stop", name)
        while (left := self.left(job)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert left == []

    def ask(self, path):
        return httpx.get(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30).json()

    def job(self, name):
        """The last one of the run."""
        jobs = [job for job in self.ask("/api/jobs/") if (job["metadata"] or {}).get("run") == name]
        return max(jobs, key=lambda job: job["start_time"])

    def living(self, job):
        """Classes of the job's actors that live, and names of its placement groups, by Ray's state API."""

        def listed(kind, owner):
            return [one for one in self.ask(f"/api/v0/{kind}?limit=10000&detail=true")["data"]["result"]["result"] if one[owner] == job["job_id"]]

        actors = {actor["class_name"] for actor in listed("actors", "job_id") if actor["state"] != "DEAD"}
        groups = {f"group {group['name']}" for group in listed("placement_groups", "creator_job_id") if group["state"] != "REMOVED"}
        return (actors | groups) - {RAYS_OWN}

    def left(self, job):
        """What a job that is over still has: actors, placement groups, CPUs, applications, and the service's port."""
        used = [f"{self.used_cpus:g} CPUs"] if self.used_cpus else []
        return [*sorted(self.living(job)), *used, *sorted(self.applications), *(["port"] if self.is_serving() else [])]

    @property
    def used_cpus(self):
        status = self.ask("/api/cluster_status")["data"]["clusterStatus"]
        return status["loadMetricsReport"]["usage"]["CPU"][0]

    def names(self, kind):
        """Of all `actors` or `tasks` that there have been, as Ray's dashboard lists them."""
        return {entry["name"] for entry in self.ask(f"/api/v0/{kind}?limit=10000")["data"]["result"]["result"]}

    @property
    def applications(self):
        return set(self.ask("/api/serve/applications/")["applications"])

    def says(self, name, text):
        """Whether the last job of the run has printed it; without the weight of a command."""
        return text in self.ask(f"/api/jobs/{self.job(name)['submission_id']}/logs")["logs"]

    def asks_for(self, token):
        """Whether the service answers who has the token and nobody else."""
        card = f"http://127.0.0.1:{self.serve_port}/v1/controller"
        return [httpx.get(card, headers=headers).status_code for headers in ({}, {"Authorization": f"Bearer {token}"})] == [401, 200]

    def files_with(self, text):
        """Of all that Ray has written; not of our own code, this file included, which was sent there with a job."""
        written = (path for path in self.folder.rglob("*") if path.is_file() and "working_dir_files" not in path.parts)
        return [path for path in written if text.encode() in path.read_bytes()]

    def is_serving(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.serve_port)) == 0

    def is_idle(self):
        return self.used_cpus == 0 and not self.applications


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = Path(tempfile.mkdtemp(prefix="pmx", dir="/tmp"))  # Sockets need a short path.
    folder.chmod(0o755)
    found = Cluster(folder, tmp_path_factory.mktemp("shared"))
    said = found.run("cluster", "start", "--folder", folder, "--num-cpus", 8, "--dashboard-port", found.port)
    assert f"[{{files: [{metrics_targets(folder)}]}}]" in said
    mark = running(folder).mark
    try:
        yield found
        assert "stopped" in found.run("cluster", "stop", "--folder", folder)
        assert processes(mark) == []
        assert "none was running" in found.run("cluster", "stop", "--folder", folder)
    finally:
        for process in processes(mark):
            process.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def controllers(tmp_path_factory):
    """Two, that decide differently."""
    folders = [tmp_path_factory.mktemp("controller") for _ in range(2)]
    for seed, folder in enumerate(folders):
        parameters = {key: value + 0.1 for key, value in initial_parameters("equivariant", 0, 6, np.random.default_rng(seed)).items()}
        save_controller(folder, parameters, name="given", architecture="equivariant", facts={"seed": seed})
    return folders


def wait_until(condition, seconds=BACK_S):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_the_cluster_is_for_its_user_alone(cluster):
    assert httpx.get(cluster.address + "/api/version").status_code == 401
    refused = proxymix("status", environment=cluster.environment | {"RAY_AUTH_TOKEN": "another" * 6})
    assert refused.returncode == 2
    assert "the cluster refused the token" in refused.stderr
    assert cluster.folder.stat().st_mode & 0o077 == 0
    listening = [c for p in processes(running(cluster.folder).mark) for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    assert "runs already" in cluster.run("cluster", "start", "--folder", cluster.folder, code=2)


def metrics_pages(targets):
    """What answers at the addresses in the file `targets` now; a target may be named before it listens."""
    found = [target for group in json.loads(targets.read_text()) for target in group["targets"]] if targets.exists() else []
    for target in found:
        with suppress(httpx.HTTPError):
            yield httpx.get(f"http://{target}/metrics", timeout=30).text


def test_prometheus_finds_its_metrics(cluster):
    wait_until(lambda: any("ray_node_cpu_count" in page for page in metrics_pages(metrics_targets(cluster.folder))))


def test_a_job_ends_here_as_it_ends_there(cluster):
    said = cluster.submit("pretrain_base", "sent")
    assert str(cluster.shared / "cache") in said
    folder = cluster.shared / "runs" / "sent"
    assert manifest(folder)["status"] == "finished"
    assert manifest(folder)["git_revision"]
    assert "0 of 8 in use" in cluster.run("status", "sent")
    assert str(cluster.shared / "cache") in cluster.run("logs", "sent")
    said = cluster.submit("pretrain_base", "sent", "resources.memory_gib=100000", code=2)
    assert "error: resources.memory_gib: must be free to start" in said


def test_rays_own_command_works_too(cluster):
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.pretrain_base"]
    environment = {**os.environ, **cluster.environment, "RAY_AUTH_MODE": "token"}

    def submit(*overrides):
        return subprocess.run(
            [*ray, "--config", "configs/smoke.yaml", *overrides], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    done = submit("name=plain", f"runs_root={cluster.shared / 'runs'}", f"cache_root={cluster.shared / 'cache'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert manifest(cluster.shared / "runs" / "plain")["status"] == "finished"
    assert "raysubmit_" in cluster.run("status")
    lost = submit()
    assert lost.returncode == 1
    assert "runs_root: must be absolute under `ray job submit`" in lost.stdout


def test_a_cluster_that_is_too_small_says_so(cluster):
    said = cluster.submit("pretrain_base", "large", "evaluation.actors=9", code=2)
    assert "error: resources: the run needs 12 CPUs; free are 8 of 8 CPUs, and no other run's end will bring more" in said


def test_stop_takes_everything_down(cluster, controllers):
    serve = ["serve_controller", "served", "--no-wait", f"controller.path={controllers[0]}", "service.token_env=A_TOKEN"]
    cluster.submit(*serve, variables={"A_TOKEN": "of-the-submitter"})  # Here alone; the cluster has never heard of it.
    wait_until(lambda: cluster.says("served", "/docs"), 300)
    assert len(cluster.applications) == 1
    assert cluster.asks_for("of-the-submitter")
    assert "works on run" in cluster.submit(*serve, code=2)
    cluster.stop("served")
    assert manifest(cluster.shared / "runs" / "served")["status"] == "interrupted"
    assert "STOPPED" in cluster.run("status", "served")
    assert cluster.files_with("jobs.serve_controller")
    assert cluster.files_with("of-the-submitter") == []


def test_a_killed_job_is_cleaned_up_after(cluster, controllers):
    given = ["service.token_env=A_TOKEN", "--env", "A_TOKEN=given-by-option"]
    cluster.submit("serve_controller", "killed", "--no-wait", f"controller.path={controllers[0]}", *given)
    wait_until(lambda: cluster.says("killed", "/docs"), 300)
    assert cluster.asks_for("given-by-option")
    drivers = [p for p in processes(running(cluster.folder).mark) if "jobs.serve_controller" in p.cmdline()]
    assert drivers
    for driver in drivers:
        driver.send_signal(signal.SIGKILL)
    cluster.run("logs", "--follow", "killed", code=137)
    assert cluster.applications  # Serve's applications outlive their drivers.
    cluster.stop("killed")


@pytest.mark.timeout(1800)
def test_stop_in_the_middle_of_tuning_leaves_nothing_alive(cluster, controllers):
    long = ["methods=[proxymix]", f"seeds={list(range(50))}"]
    cluster.submit("tune_target", "midway", "--no-wait", "evaluation.engine=transformers", f"controller.path={controllers[0]}", *long)
    wait_until((cluster.shared / "runs/midway/target/proxymix/seed0/decisions.jsonl").exists, 600)
    living = cluster.living(cluster.job("midway"))
    assert {"EvaluationActor", "RayTrainWorker", "ServeController"} <= living
    assert any(one.startswith("group proxymix-keeps") for one in living)
    cluster.stop("midway")
    assert manifest(cluster.shared / "runs" / "midway")["status"] == "interrupted"


@pytest.mark.timeout(1800)
def test_two_runs_side_by_side_have_their_own_controllers(cluster, controllers):
    for name, folder in zip(("left", "right"), controllers, strict=True):
        work = ["methods=[proxymix]", "seeds=[0,1,2]", "evaluation.engine=transformers"]
        cluster.submit("tune_target", name, "--no-wait", *work, f"controller.path={folder}")
    wait_until(lambda: len(cluster.applications) == 2, 600)
    for name in ("left", "right"):
        cluster.run("logs", "--follow", name)
    for name, folder in zip(("left", "right"), controllers, strict=True):
        decisions = rows(cluster.shared / "runs" / name / "target/proxymix/seed0/decisions.jsonl")
        assert len(decisions) == 4
        assert {(row["controller"]["sha256"], row["fallback"]) for row in decisions} == {(FrozenController.load(folder).sha256, None)}
    wait_until(lambda: cluster.is_idle() and not cluster.is_serving())
    actors, tasks = cluster.names("actors"), cluster.names("tasks")
    assert {"evaluator/left/0", "evaluator/right/0"} <= actors
    assert {f"score/runs/{name}/target/base_scores.json" for name in ("left", "right")} <= tasks
    assert {"start/evaluator/left/0", *(f"score/proxymix/seed0/scores/task{index}.json" for index in range(2))} <= tasks
    assert any(task.startswith("pretrain/") for task in tasks)
