"""In the middle of a stage a worker dies, or the driver, or all of its cluster with it; records and weights are those of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from functools import partial
from pathlib import Path

import own_ray
import pytest
from mid_stage import AT, arm
from test_tuning import ADAPTED, LossSensitive, base, config_with, marked, rows_of, wait_until, without_seconds

from proxymix.artifacts import target_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

    from cluster.tuning import tune_targets

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]
__all__ = ["base"]
RUN = ("loss_sensitive", 0)
NUM_CPUS = 4
CONFIG = config_with(2, {**ADAPTED, "parallelism": {"num_workers": 2, "strategy": "fsdp"}})


class MidStage(LossSensitive):
    """Lets `strike` happen, once, in the middle of the last stage but one."""

    def __init__(self, flag, strike):
        self.flag, self.strike = flag, strike

    def decide(self, boundary):
        if (boundary.task_index, boundary.stage_index) == AT and not self.flag.exists():
            arm(self.flag, self.strike)
        return super().decide(boundary)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def choose(flag, strike, method, seed, sha256):
    return MidStage(flag, strike)


def tune(base, run_dir, strike=None):
    flag = Path(run_dir) / "flag"
    if strike is None:
        flag.write_text("nothing is to happen")
    tune_targets(CONFIG, [RUN], base_folder=str(base), run_dir=str(run_dir), controller_for=partial(choose, flag, strike), name="tuned")


def start_ray(address="local"):
    import mid_stage
    import test_tuning

    for module in (test_tuning, mid_stage, sys.modules[MidStage.__module__]):
        ray.cloudpickle.register_pickle_by_value(module)  # Workers cannot import a test.
    os.environ["RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION"] = "0"  # It asks for a dashboard.
    variables = {"OMP_NUM_THREADS": "1"}
    if address == "local":
        own_ray.start_ray(NUM_CPUS, variables)
    else:
        ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": variables})


def drive(base, run_dir, address):
    """What a process of its own does, until it is killed."""
    start_ray(address)
    tune(base, run_dir, hang)


def kill_driver_in_a_stage(base, run_dir, address="local"):
    """Of a run on the cluster at `address`, or on one of the driver's own, which then dies too."""
    mark = uuid.uuid4().hex
    here = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    environment = {**os.environ, "TEST_MARK": mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
    command = [sys.executable, "-c", f"import test_kills; test_kills.drive({str(base)!r}, {str(run_dir)!r}, {address!r})"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_until((Path(run_dir) / "flag").exists, 400, process)
    finally:
        process.kill()
        for left in marked(mark):
            left.kill()
        process.communicate()
    wait_until(lambda: not marked(mark), 60)
    assert len(rows_of(run_dir, *RUN)) == 2


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
    kill_driver_in_a_stage(base, tmp_path)
    tune(base, tmp_path)
    assert outcome(tmp_path) == undisturbed


def test_driver_killed_in_the_middle_of_a_stage_on_a_cluster_that_lives_on(cluster, base, tmp_path, undisturbed):
    kill_driver_in_a_stage(base, tmp_path, ray.get_runtime_context().gcs_address)
    wait_until(lambda: ray.available_resources().get("CPU") == NUM_CPUS, 60)  # Its workers, one of them hanging, went with it.
    tune(base, tmp_path)
    assert outcome(tmp_path) == undisturbed
