"""The target is tuned on a Ray cluster of two nodes, and one of them is killed in the middle of a stage."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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


@pytest.fixture(scope="module")
def nodes():
    """Address and raylets; the worker node is for the last test to kill."""
    folder = tempfile.mkdtemp(prefix="pmx", dir="/tmp")  # Sockets need a short path.
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), folder]
    environment = {**os.environ, **SECRETS, ONE_MACHINE: "0"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield json.loads(next(line for line in process.stdout if line.startswith("{")))
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


def start(nodes, runs):
    environment = {**os.environ, **SECRETS, ONE_MACHINE: "0", "RAY_ADDRESS": nodes["address"], "OMP_NUM_THREADS": "1"}
    command = arguments("tune_target", runs, *SPREAD, *STEERED)
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def trainers(raylet):
    """Train's worker processes of a node."""
    return [child for child in psutil.Process(raylet).children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


def timeless(runs):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(runs / DECISIONS)]


def finished(process):
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said


@pytest.mark.timeout(1500)
def test_a_run_survives_the_loss_of_a_node(nodes, tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    finished(start(nodes, undisturbed))
    process = start(nodes, disturbed)
    deadline = time.monotonic() + 500
    while not (disturbed / DECISIONS).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [len(trainers(nodes[node])) for node in ("head", "worker")] == [1, 1]
    psutil.Process(nodes["worker"]).kill()
    assert 1 <= len(timeless(disturbed)) < 4  # Stages were still to come.
    finished(process)
    assert timeless(disturbed) == timeless(undisturbed)
    assert all(row["fallback"] is None for row in timeless(disturbed))
