"""Target runs that begin before there is a controller."""

import time
import warnings
from functools import partial
from pathlib import Path

import psutil
import pytest

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
from proxymix.learners.pretraining import pretrain_base

pytestmark = pytest.mark.cluster
SHARE = 0.25


@pytest.fixture(scope="module")
def cluster():
    environment = {**WORKER_ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parent)}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    yield
    ray.shutdown()


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


def test_who_leaves_early_leaves_no_process(cluster, config, base, tmp_path):
    def workers():
        return {process.pid for process in psutil.process_iter(["cmdline"]) if "TrainWorker" in " ".join(process.info["cmdline"] or [])}

    before = workers()
    with runs(config, base, tmp_path) as targets:
        targets.begin()
        wait_until(lambda: tuning_progress(config, tmp_path, [("random_30", 0)])[0] > 0)
        assert workers() - before
    wait_until(lambda: not workers() - before)
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
