"""Machines die in the middle of a stage: a worker, or the driver and all of its cluster; records and weights are those of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from functools import partial
from pathlib import Path

import pytest
from test_tuning import ADAPTED, LossSensitive, base, config_with, marked, rows_of, wait_until, without_seconds

from proxymix.artifacts import target_folder
from proxymix.learners.large import LargeLearner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

    from cluster.tuning import tune_targets

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]
__all__ = ["base"]
RUN = ("loss_sensitive", 0)
CONFIG = config_with(2, {**ADAPTED, "parallelism": {"num_workers": 2, "strategy": "fsdp"}})


class MidStage(LossSensitive):
    """Lets `strike` happen, once, at the second step of the last stage but one; before that stage there is a checkpoint of another task's."""

    def __init__(self, flag, strike):
        self.flag, self.strike = flag, strike

    def decide(self, boundary):
        if (boundary.task_index, boundary.stage_index) == (1, 0) and not self.flag.exists():
            self._arm()
        return super().decide(boundary)

    def _arm(self):
        train_steps, steps = LargeLearner.train_steps, []

        def struck(learner, batches):
            steps.append(batches)
            if len(steps) == 2:
                self.flag.write_text("here")
                self.strike()
            return train_steps(learner, batches)

        LargeLearner.train_steps = struck


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def choose(flag, strike, method, seed):
    return MidStage(flag, strike)


def tune(base, run_dir, strike=None):
    flag = Path(run_dir) / "flag"
    if strike is None:
        flag.write_text("nothing is to happen")
    tune_targets(CONFIG, [RUN], base_folder=str(base), run_dir=str(run_dir), controller_for=partial(choose, flag, strike), name="tuned")


def start_ray():
    import test_tuning

    for module in (test_tuning, sys.modules[MidStage.__module__]):
        ray.cloudpickle.register_pickle_by_value(module)  # Workers cannot import a test.
    os.environ["RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION"] = "0"  # It asks for a dashboard.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})


def drive(base, run_dir):
    """What a process of its own does, until it is killed."""
    start_ray()
    tune(base, run_dir, hang)


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION", "0")
        start_ray()
        yield
        ray.shutdown()


def outcome(run_dir):
    models = sorted((target_folder(run_dir, *RUN) / "checkpoints").glob("task*/*.safetensors"))
    return without_seconds(rows_of(run_dir, *RUN)), {f"{path.parent.name}/{path.name}": path.read_bytes() for path in models}


@pytest.fixture(scope="module")
def undisturbed(cluster, base, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    tune(base, run_dir)
    rows, models = outcome(run_dir)
    assert (len(rows), len(models)) == (4, 2)
    return rows, models


def test_a_worker_killed_in_the_middle_of_a_stage(cluster, base, tmp_path, undisturbed):
    tune(base, tmp_path, die)
    assert (tmp_path / "flag").read_text() == "here"
    assert outcome(tmp_path) == undisturbed


def test_driver_and_cluster_killed_in_the_middle_of_a_stage(cluster, base, tmp_path, undisturbed):
    mark = uuid.uuid4().hex
    here = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "TEST_MARK": mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    command = [sys.executable, "-c", f"import test_kills; test_kills.drive({str(base)!r}, {str(tmp_path)!r})"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_until((tmp_path / "flag").exists, 400, process)
    finally:
        process.kill()
        for left in marked(mark):
            left.kill()
        process.communicate()
    wait_until(lambda: not marked(mark), 60)
    assert len(rows_of(tmp_path, *RUN)) == 2
    tune(base, tmp_path)
    assert outcome(tmp_path) == undisturbed
