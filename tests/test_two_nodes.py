"""The target is tuned on a Ray cluster of two nodes; in the middle of a stage its memory, a node or its head is killed."""

import hashlib
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
from mid_stage import AT, let_go
from test_jobs import ROOT, arguments, rows
from test_serve import free_port

from proxymix.artifacts import read_json, target_folder
from proxymix.cases import sequence_tasks
from proxymix.config import load_config
from proxymix.evaluation.scoring import assemble_accuracy

pytestmark = pytest.mark.cluster

SECRETS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef", "PROXYMIX_TOKEN": "fedcba9876543210"}
SPREAD = ["target.parallelism.num_workers=2", "target.parallelism.spread=true", "tuning.steps_per_stage=4"]
STEERED = ["methods=[proxymix]", "controller.path=shipped", "service.token_env=PROXYMIX_TOKEN", "evaluation.engine=transformers"]
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: nodes on loopback, wherever the machine's routes lead."""
RUN = ("proxymix", 0)


@contextmanager
def two_nodes(store="rocksdb"):
    """The running program, and what it says of itself."""
    folder = tempfile.mkdtemp(prefix="pmx", dir="/tmp")  # Sockets need a short path.
    command = [sys.executable, str(Path(__file__).with_name("two_nodes.py")), folder, store]
    environment = {**os.environ, **SECRETS, ONE_MACHINE: "0"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        yield process, json.loads(next(line for line in process.stdout if line.startswith("{")))
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redis(folder):
    """Address of a Redis of this machine's own, which keeps what it knows in `folder`."""
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not installed (Debian: apt-get install redis-server)")
    port, secret = free_port(), "abcdef9876543210"
    settings = ["--bind", "127.0.0.1", "--port", str(port), "--requirepass", secret, "--dir", str(folder), "--appendonly", "yes"]
    with subprocess.Popen(["redis-server", *settings], stdout=subprocess.DEVNULL) as process:
        yield f"redis://:{secret}@127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(scope="module")
def cluster():
    """Its worker node is for the last test but one to kill, its head for the last."""
    with two_nodes() as cluster:
        yield cluster


def start(nodes, runs, halts=False):
    """The job; if it `halts`, then in the middle of a stage, until it is let go or killed."""
    environment = {**os.environ, **SECRETS, ONE_MACHINE: "0", "RAY_ADDRESS": nodes["address"], "OMP_NUM_THREADS": "1"}
    command = arguments("tune_target", runs, *SPREAD, *STEERED)
    if halts:
        command[2:3] = ["tests.mid_stage", str(runs / "flag")]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def start_and_halt_in_a_stage(nodes, runs):
    process = start(nodes, runs, halts=True)
    deadline = time.monotonic() + 500
    while not (runs / "flag").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(timeless(runs)) == AT[0] * 2 + AT[1]  # What is under way has no record yet.
    return process


def trainers(raylet):
    """Train's worker processes of a node."""
    return [child for child in psutil.Process(raylet).children(recursive=True) if "RayTrainWorker" in " ".join(child.cmdline())]


def timeless(runs):
    decisions = target_folder(runs / "smoke", *RUN) / "decisions.jsonl"
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(decisions)]


def outcome(runs):
    """Records, hashes of the models of all tasks, and accuracies: all that must be the same."""
    folder, config = target_folder(runs / "smoke", *RUN), load_config(runs / "smoke" / "config.yaml")
    models = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("checkpoints/task*/model.safetensors")
    }
    names = ([spec.label for spec in specs] for specs in (sequence_tasks(config), config.sequence.anchors))
    assemble_accuracy(runs / "smoke", *RUN, *names)
    return timeless(runs), models, read_json(folder / "accuracy.json")


def finished(process):
    said = process.communicate(timeout=500)[1]
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    finished(start(cluster[1], runs))
    decisions, models, accuracy = outcome(runs)
    assert [row["fallback"] for row in decisions] == [None] * 4
    assert len(set(models.values())) == 2
    assert not accuracy["unscored"]
    assert None not in [*accuracy["matrix"][0], *accuracy["matrix"][1]]
    return decisions, models, accuracy


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_run_survives_the_loss_of_the_clusters_memory(cluster, undisturbed, tmp_path):
    outlive_the_memory(*cluster, tmp_path)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_run_survives_the_loss_of_a_memory_that_is_in_redis(undisturbed, tmp_path):
    with redis(tmp_path) as store, two_nodes(store) as cluster:
        outlive_the_memory(*cluster, tmp_path)
        assert next(tmp_path.glob("appendonlydir/*.incr.aof")).stat().st_size > 0
    assert outcome(tmp_path) == undisturbed


def outlive_the_memory(program, nodes, runs):
    """A run in whose second task the GCS is killed and started again."""
    process = start_and_halt_in_a_stage(nodes, runs)
    program.stdin.write("\n")
    program.stdin.flush()
    successor = int(program.stdout.readline())
    assert not psutil.pid_exists(nodes["gcs"])
    assert psutil.Process(successor).name() == "gcs_server"
    let_go(runs / "flag")
    finished(process)


@pytest.mark.timeout(1500)
def test_a_run_survives_the_loss_of_a_node(cluster, undisturbed, tmp_path):
    nodes = cluster[1]
    process = start_and_halt_in_a_stage(nodes, tmp_path)
    assert [len(trainers(nodes[node])) for node in ("head", "worker")] == [1, 1]
    psutil.Process(nodes["worker"]).kill()
    finished(process)
    assert outcome(tmp_path) == undisturbed


@pytest.mark.faults
@pytest.mark.timeout(1500)
def test_a_run_goes_on_elsewhere_after_the_loss_of_the_head(undisturbed, tmp_path):
    with two_nodes() as (_, nodes):
        process = start_and_halt_in_a_stage(nodes, tmp_path)
        head = psutil.Process(nodes["head"])
        for process_there in (psutil.Process(nodes["gcs"]), head, *head.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # Some end with their parent.
                process_there.kill()
        said = process.communicate(timeout=180)[1]
        assert f"the head of the Ray cluster, {nodes['address']}, has not answered" in said
        assert process.returncode != 0
        assert len(timeless(tmp_path)) == 2
    with two_nodes() as (_, nodes):
        finished(start(nodes, tmp_path))
    assert outcome(tmp_path) == undisturbed
