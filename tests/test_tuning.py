"""The target on a real Ray Train: the same numbers for any number of workers, after a kill, and one clear message for a mistake."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from own_ray import own_ray

from proxymix.artifacts import read_jsonl, target_folder
from proxymix.cases import Case, sequence_tasks
from proxymix.config import Config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.errors import UserError
from proxymix.journal import record_row
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.pretraining import build_tokenizer, llama_config
from proxymix.types import Decision

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from cluster.tuning import _checkpoint_place, failure, target_builder, tune_targets, tuning_progress

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]


def config_with(num_workers=1, target=(), **tuning):
    return Config.model_validate(
        {
            "name": "tuned",
            "sequence": {"tasks": ["table_small@heldout-0", "modular@heldout-0"]},
            "target": {"parallelism": {"num_workers": num_workers}, **dict(target)},
            "tuning": {"stages_per_task": 2, "steps_per_stage": 4, "batch_size": 8, **tuning},
        }
    )


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")  # It asks for a dashboard.
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Workers cannot import a test.
        with own_ray(4, {"OMP_NUM_THREADS": "1"}):
            yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer(config_with(), ())
    network = LeanLlama(llama_config("nano", tokenizer, 64))
    network.initialise(torch.Generator().manual_seed(0))
    network.save(folder)
    tokenizer.save_pretrained(folder)
    return folder


ASSIGNMENTS = [("loss_sensitive", 0), ("random_30", 1)]


class LossSensitive:
    """Its answer hangs on the exact losses, so that a difference between workers would grow."""

    name = "loss_sensitive"

    def decide(self, boundary):
        losses = [source.losses[-1] for source in boundary.sources]
        return Decision({name: loss / math.fsum(losses) for name, loss in zip(boundary.names, losses, strict=True)}, self.name)


def choose(method, seed, sha256=None):
    return LossSensitive() if method == "loss_sensitive" else baseline(method)


def rows_of(run_dir, method, seed):
    return list(read_jsonl(target_folder(run_dir, method, seed) / "decisions.jsonl"))


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def expected_rows(config, base, method, seed):
    """The same run in this process, without Ray."""
    tasks = sequence_tasks(config)
    case = Case(f"tuned/{method}/seed{seed}", tasks, (config.tuning.steps_per_stage,) * len(tasks), seed)
    run = target_builder(config, str(base)).build(case)
    return json.loads(json.dumps([record_row(record) for record in run_continual(run, choose(method, seed))]))


def flattened(value):
    if isinstance(value, dict):
        return [leaf for key in value for leaf in flattened(value[key])]
    return [leaf for item in value for leaf in flattened(item)] if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def undisturbed(cluster, base, tmp_path_factory):
    """The run folder of two workers that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    tune_targets(config_with(2), ASSIGNMENTS, base_folder=str(base), run_dir=str(run_dir), controller_for=choose, name="tuned")
    return run_dir


def assert_alike(rows, expected):
    """But for the order of sums."""
    assert [row["counts"] for row in rows] == [row["counts"] for row in expected]
    for left, right in zip(flattened(without_seconds(rows)), flattened(without_seconds(expected)), strict=True):
        assert left == (pytest.approx(right, rel=1e-4) if isinstance(right, float) else right)


def test_two_workers_give_the_run_of_one_process(base, undisturbed):
    for method, seed in ASSIGNMENTS:
        rows = rows_of(undisturbed, method, seed)
        assert_alike(rows, expected_rows(config_with(), base, method, seed))
        folder = target_folder(undisturbed, method, seed)
        assert LeanLlama.load(folder / "checkpoints" / "task1").config["hidden_size"] == 32
        assert rows[0]["request_id"] == f"tuned/{method}/seed{seed}/task0/stage0"


ADAPTED = {"model": {"preset": "nano", "implementation": "transformers"}, "lora": {"rank": 4, "alpha": 8}}
LARGE = {**ADAPTED, "micro_batch_size": 1, "pack_tokens": 64, "gradient_checkpointing": True}


class Refusing:
    """A rule that nobody answers for after the first stage of the second task."""

    name = "loss_sensitive"

    def decide(self, boundary):
        if (boundary.task_index, boundary.stage_index) == (1, 1):
            raise UserError("service.url: nobody answers; start it")
        return LossSensitive().decide(boundary)


def choose_refusing(method, seed, sha256):
    return Refusing()


def test_a_large_target_over_two_workers_goes_on_with_one_and_is_what_it_always_was(cluster, base, tmp_path):
    place, spread = {"base_folder": str(base), "run_dir": str(tmp_path), "name": "tuned"}, {"parallelism": {"num_workers": 2, "strategy": "fsdp"}}
    with pytest.raises(UserError, match="nobody answers"):
        tune_targets(config_with(target=LARGE | spread), ASSIGNMENTS[:1], controller_for=choose_refusing, **place)
    assert len(rows_of(tmp_path, *ASSIGNMENTS[0])) == 3
    tune_targets(config_with(target=LARGE), ASSIGNMENTS[:1], controller_for=choose, **place)
    assert_alike(rows_of(tmp_path, *ASSIGNMENTS[0]), expected_rows(config_with(target=ADAPTED), base, *ASSIGNMENTS[0]))
    for task in (0, 1):
        assert LeanLlama.load(target_folder(tmp_path, *ASSIGNMENTS[0]) / "checkpoints" / f"task{task}").config["hidden_size"] == 32


def test_what_is_finished_is_not_started_again(base, undisturbed):
    assert tuning_progress(config_with(), undisturbed, ASSIGNMENTS) == (8, 8)
    before = {path: path.read_bytes() for path in undisturbed.rglob("decisions.jsonl")}
    started = time.perf_counter()
    tune_targets(config_with(2), ASSIGNMENTS, base_folder=str(base), run_dir=str(undisturbed), controller_for=choose, name="tuned")
    assert time.perf_counter() - started < 1  # Not even Train is.
    assert before == {path: path.read_bytes() for path in before}


class Deadly:
    """A rule whose worker is killed, once, in the middle of the second task."""

    name = "loss_sensitive"

    def __init__(self, flag):
        self.flag = flag

    def decide(self, boundary):
        if boundary.task_index == 1 and boundary.stage_index == 1 and not self.flag.exists():
            self.flag.write_text("died here")
            os.kill(os.getpid(), signal.SIGKILL)
        return LossSensitive().decide(boundary)


def choose_deadly(flag, method, seed, sha256):
    return Deadly(flag)


def test_a_killed_worker_changes_no_number(cluster, base, tmp_path, undisturbed):
    flag, choose_once_deadly = tmp_path / "flag", partial(choose_deadly, tmp_path / "flag")
    tune_targets(config_with(2), ASSIGNMENTS[:1], base_folder=str(base), run_dir=str(tmp_path), controller_for=choose_once_deadly, name="tuned")
    assert flag.exists()
    assert without_seconds(rows_of(tmp_path, *ASSIGNMENTS[0])) == without_seconds(rows_of(undisturbed, *ASSIGNMENTS[0]))
    weights = [target_folder(run_dir, *ASSIGNMENTS[0]) / "checkpoints" / "task1" / "model.safetensors" for run_dir in (tmp_path, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def refuse_random(method, seed, sha256):
    if method.startswith("random"):
        raise UserError("service.url: nobody answers; start it")
    return choose(method, seed)


def test_a_mistake_is_one_message_and_the_next_call_goes_on(cluster, base, tmp_path):
    with pytest.raises(UserError, match=r"^service.url: nobody answers; start it$"):
        tune_targets(config_with(), ASSIGNMENTS, base_folder=str(base), run_dir=str(tmp_path), controller_for=refuse_random, name="tuned")
    assert tuning_progress(config_with(), tmp_path, ASSIGNMENTS) == (4, 8)
    tune_targets(config_with(), ASSIGNMENTS, base_folder=str(base), run_dir=str(tmp_path), controller_for=choose, name="tuned")
    assert tuning_progress(config_with(), tmp_path, ASSIGNMENTS) == (8, 8)


def test_a_loss_that_explodes_is_told(cluster, base, tmp_path):
    config = config_with(2, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(UserError, match=r"^target run tuned/random_30/seed0: (loss|gradient norm) became .*; lower the learning rate"):
        tune_targets(config, [("random_30", 0)], base_folder=str(base), run_dir=str(tmp_path), controller_for=choose, name="tuned")


def test_a_fault_that_stays_is_told_in_its_last_line():
    trace = "Traceback (most recent call last):\n  …\nRuntimeError: a wire is loose\n"
    assert (
        failure(WorkerGroupError("all of it", {1: RuntimeError(trace)})) == "the workers failed 4 times, lastly with: RuntimeError: a wire is loose"
    )
    assert failure(ControllerError(RuntimeError("no room\nSet THIS"))) == "Ray Train stopped: RuntimeError: no room Set THIS"
    assert failure(ControllerError(TimeoutError())) == "Ray Train stopped: TimeoutError:"
    assert failure(WorkerGroupError("", {0: ValueError()})) == "the workers failed 4 times, lastly with: ValueError:"


def test_states_elsewhere_are_found_again_with_other_env_runners():
    """Runs that learn on other tasks have other places; how many processes learnt the controller decides nothing."""
    tree = config_with(target={"checkpoints": {"storage": "memory://states"}}).model_dump()
    places = []
    for controller in ({}, {"num_env_runners": 5}, {"episodes": 64}):
        config = Config.model_validate(tree | {"controller": tree["controller"] | controller})
        places.append(_checkpoint_place(config, Path("runs/tuned/target/random_30/seed0")))
    assert places[0] == places[1] != places[2]
    assert places[0].startswith("memory://states/tuned-")


def marked(mark):
    """Processes that a driver with this environment left behind, itself included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def outward(mark):
    """Programs among them that listen on another address than loopback."""
    found = []
    for process in marked(mark):
        with suppress(psutil.Error):
            addresses = {c.laddr.ip.removeprefix("::ffff:") for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
            found += [" ".join(process.cmdline())] * bool(addresses - {"127.0.0.1"})
    return found


def wait_until(condition, seconds, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.2)


def test_ctrl_c_is_an_interruption_and_leaves_nothing_behind(tmp_path):
    root, mark = Path(__file__).parents[1], uuid.uuid4().hex
    overrides = [f"runs_root={tmp_path}", f"cache_root={tmp_path / 'cache'}", "methods=[no_replay]", "tuning.steps_per_stage=100"]
    command = [sys.executable, "-m", "jobs.tune_target", "--config", "configs/smoke.yaml", *overrides, "evaluation.engine=transformers"]
    environment = {**os.environ, "TEST_MARK": mark, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_until((target_folder(tmp_path / "smoke", "no_replay", 0) / "decisions.jsonl").exists, 400, process)
        # Torch's own store listens everywhere, and knows no other way (docs/threat-model.md).
        assert [name for name in outward(mark) if "RayTrainWorker" not in name] == []
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "interrupted; the same command goes on from here" in said
        assert "Traceback" not in said
        assert json.loads((tmp_path / "smoke/manifest.json").read_text())["status"] == "interrupted"
        wait_until(lambda: not marked(mark), 60)
    finally:
        for left in marked(mark):
            left.kill()
        process.communicate()


def test_a_gpu_that_torch_does_not_see_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^target\.parallelism\.use_gpu: needs a GPU that torch sees .*REQUIREMENTS=gpu"):
        target_builder(config_with(target={"parallelism": {"use_gpu": True}}), str(tmp_path))
