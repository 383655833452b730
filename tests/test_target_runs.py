"""Target runs that begin before there is a controller."""

import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import psutil
import pytest
from own_ray import own_ray

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import ray

    from cluster.session import WORKER_ENVIRONMENT
    from cluster.target_runs import TargetRuns
    from cluster.tuning import tuning_progress

from proxymix.artifacts import read_jsonl, target_folder
from proxymix.config import Config, load_config
from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.journal import is_finished
from proxymix.learners.pretraining import pretrain_base

pytestmark = pytest.mark.cluster
SHARE = 0.25
ANOTHER_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
print("there", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        folder = tempfile.mkdtemp(prefix="pmx", dir="/tmp")  # Sockets need a short path.
        patch.setenv("RAY_TMPDIR", folder)  # What Ray writes down for the whole machine is there, and no other test's business.
        with own_ray(4, {**WORKER_ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent)}):
            yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    overrides = ["methods=[proxymix, random_30]", "tuning.steps_per_stage=2"]
    return load_config("configs/smoke.yaml", [*overrides, f"cache_root={tmp_path_factory.mktemp('cache')}"])


@pytest.fixture(scope="module")
def base(config):
    return pretrain_base(config, config.target.model)


def runs(config, base, run_dir):
    return TargetRuns(config, base, str(run_dir), [(method, seed) for seed in config.seeds for method in config.methods])


def shares(run_dir, method):
    """Of replay, in every stage of the second task."""
    rows = read_jsonl(target_folder(run_dir, method, 0) / "decisions.jsonl")
    return [row["replay_share"] for row in rows if row["task_index"] == 1]


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def finish(targets):
    while not targets.wait(1.0):
        pass


def workers(cluster):
    """Train's, of this Ray alone."""
    processes = psutil.process_iter(["cmdline", "environ"])
    titled = (process for process in processes if "TrainWorker" in " ".join(process.info["cmdline"] or []))
    return {process.pid for process in titled if (process.info["environ"] or {}).get("RAY_TMPDIR") == cluster}


def choose(seed, sha256):
    return UniformReplay(SHARE)


def refuse(seed, sha256):
    raise UserError("service.url: nobody answers; start it")


def test_rules_are_tuned_first_and_proxymix_when_its_controller_is_there(cluster, config, base, tmp_path):
    done = partial(tuning_progress, config, tmp_path)
    with runs(config, base, tmp_path) as targets:
        assert [method for method, _ in targets.assignments] == ["random_30", "proxymix"]
        targets.begin()
        wait_until(lambda: done([("random_30", 0)])[0] == done([("random_30", 0)])[1])
        assert not targets.wait(2.0)
        assert not target_folder(tmp_path, "proxymix", 0).exists()
        assert targets.steer(choose) > 0
        finish(targets)
        assert targets.wait(0.0)
    assert shares(tmp_path, "random_30") == pytest.approx([0.3] * config.tuning.stages_per_task)
    assert shares(tmp_path, "proxymix") == pytest.approx([SHARE] * config.tuning.stages_per_task)
    with runs(config, base, tmp_path) as again:
        assert again.steer(refuse) == 0  # All is there, so nothing starts.
        assert again.wait(0.0)


def test_a_cluster_that_is_started_meanwhile_on_the_machine_changes_nothing(cluster, config, base, tmp_path):
    """Ray Train asks the newest one whether its controller lives, unless it knows better."""
    with runs(config, base, tmp_path) as targets:
        targets.begin()
        wait_until(lambda: is_finished(target_folder(tmp_path, "random_30", 0)))
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", ANOTHER_CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as another:
            assert "there\n" in another.stdout
            ours = workers(cluster)
            assert not targets.wait(10.0)  # It is asked every second.
            assert ours
            assert workers(cluster) == ours
            targets.steer(choose)
            finish(targets)
            another.stdin.close()
    assert shares(tmp_path, "proxymix") == pytest.approx([SHARE] * config.tuning.stages_per_task)


def test_who_leaves_early_leaves_no_process(cluster, config, base, tmp_path):
    with runs(config, base, tmp_path) as targets:
        targets.begin()
        wait_until(lambda: tuning_progress(config, tmp_path, [("random_30", 0)])[0] > 0)
        assert workers(cluster)
    wait_until(lambda: not workers(cluster))
    wait_until(lambda: ray.available_resources().get("CPU") == 4)


def test_a_mistake_is_told_as_it_was(cluster, config, base, tmp_path):
    with runs(config, base, tmp_path) as targets:
        targets.steer(refuse)
        with pytest.raises(UserError, match=r"^service.url: nobody answers; start it$"):
            finish(targets)


@pytest.mark.parametrize(
    ("methods", "runners", "cores", "room"),
    [(["proxymix", "random_30"], 1, 8, True), (["proxymix", "random_30"], 1, 3, False), (["proxymix"], 1, 8, False), (["random_30"], 2, 3, False)],
)
def test_there_is_room_beside_learning_where_cores_are_left_and_rules_to_be_tuned(monkeypatch, config, tmp_path, methods, runners, cores, room):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 16.0})
    tree = config.model_dump()
    tree["methods"], tree["controller"]["num_env_runners"] = methods, runners
    assert runs(Config.model_validate(tree), "", tmp_path).has_room is room
