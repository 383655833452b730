"""The target is tuned on a Ray cluster of two nodes; in the middle of a stage its memory, a node or its head is killed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from test_jobs import ROOT, arguments, rows

pytestmark = pytest.mark.cluster

SECRETS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef", "PROXYMIX_TOKEN": "fedcba9876543210"}
SPREAD = ["target.parallelism.num_workers=2", "target.parallelism.spread=true", "tuning.steps_per_stage=60"]
STEERED = ["methods=[proxymix]", "controller.path=shipped", "service.token_env=PROXYMIX_TOKEN", "evaluation.engine=transformers"]
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: nodes on loopback, wherever the machine's routes lead."""
DECISIONS = "smoke/target/proxymix/seed0/decisions.jsonl"


@contextmanager
def two_nodes():
    """The running program, and what it says of itself."""
    folder = tempfile.mkdtemp(prefix="pmx", dir="/tmp")  # Sockets need a short path.
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), folder]
    environment = {**os.environ, **SECRETS, ONE_MACHINE: "0"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield process, json.loads(next(line for line in process.stdout if line.startswith("{")))
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster():
    """Its worker node is for the last test but one to kill, its head for the last."""
    with two_nodes() as cluster:
        yield cluster


def start(nodes, runs):
    environment = {**os.environ, **SECRETS, ONE_MACHINE: "0", "RAY_ADDRESS": nodes["address"], "OMP_NUM_THREADS": "1"}
    command = arguments("tune_target", runs, *SPREAD, *STEERED)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def start_and_reach_the_second_stage(nodes, runs):
    process = start(nodes, runs)
    deadline = time.monotonic() + 500
    while not (runs / DECISIONS).exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert 1 <= len(timeless(runs)) < 4  # Stages are still to come.
    return process


def trainers(raylet):
    """Train's worker processes of a node."""
    return [child for child in psutil.Process(raylet).children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


def timeless(runs):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(runs / DECISIONS)]


def finished(process):
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    finished(start(cluster[1], runs))
    decisions = timeless(runs)
    assert [row["fallback"] for row in decisions] == [None] * 4
    return decisions


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_run_survives_the_loss_of_the_clusters_memory(cluster, undisturbed, tmp_path):
    program, nodes = cluster
    process = start_and_reach_the_second_stage(nodes, tmp_path)
    program.stdin.write("\n")
    program.stdin.flush()
    successor = int(program.stdout.readline())
    assert not psutil.pid_exists(nodes["gcs"])
    assert psutil.Process(successor).name() == "gcs_server"
    finished(process)
    assert timeless(tmp_path) == undisturbed


@pytest.mark.timeout(1500)
def test_a_run_survives_the_loss_of_a_node(cluster, undisturbed, tmp_path):
    nodes = cluster[1]
    process = start_and_reach_the_second_stage(nodes, tmp_path)
    assert [len(trainers(nodes[node])) for node in ("head", "worker")] == [1, 1]
    psutil.Process(nodes["worker"]).kill()
    finished(process)
    assert timeless(tmp_path) == undisturbed


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_run_goes_on_elsewhere_after_the_loss_of_the_head(undisturbed, tmp_path):
    with two_nodes() as (_, nodes):
        process = start_and_reach_the_second_stage(nodes, tmp_path)
        head = psutil.Process(nodes["head"])
        for process_there in (psutil.Process(nodes["gcs"]), head, *head.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # Some end with their parent.
                process_there.kill()
        said = process.communicate(timeout=180)[1]
        assert f"the head of the Ray cluster, {nodes['address']}, has not answered" in said
        assert process.returncode != 0
        assert len(timeless(tmp_path)) < 4
    with two_nodes() as (_, nodes):
        finished(start(nodes, tmp_path))
    assert timeless(tmp_path) == undisturbed
