"""GPUs of proxies as Ray shares them out: of a cluster that only says it has some."""

import os
from pathlib import Path

import pytest
import ray
from fake_tuning import FakeTuning, fake_cases, in_parallel, tiny_config
from own_ray import own_ray

from cluster.policy_training import train_policy
from cluster.session import _needs
from cluster.sweep import _trainable
from cluster.sweep_trial import SweepPlan
from cluster.tasks import on_gpus
from jobs.train_controller import account_for
from proxymix.account import Account
from proxymix.config import load_config
from proxymix.errors import UserError
from proxymix.planning.gpus import GpuNeeds, gpu_needs, gpus_of

pytestmark = pytest.mark.cluster
RECIPE = Path(__file__).parents[1] / "configs" / "llama3_8b_s1.yaml"


@pytest.fixture(scope="module")
def cluster():
    with own_ray(4, {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}, num_gpus=1):
        yield


def on_half_a_gpu(**controller):
    config = tiny_config(**controller)
    return config.model_copy(update={"proxy": config.proxy.model_copy(update={"gpus_per_runner": 0.5})})


class HeldTuning(FakeTuning):
    """Fails where it does not hold half a GPU."""

    def reset(self, **options):
        assert ray.get_runtime_context().get_assigned_resources()["GPU"] == 0.5
        return super().reset(**options)


def test_env_runners_hold_their_share_and_the_account_has_it(cluster, tmp_path):
    config = on_half_a_gpu(num_env_runners=2)
    result = train_policy(config, "base", fake_cases(), tmp_path, lambda row: None, in_parallel(HeldTuning))
    account = Account(tmp_path / "costs.jsonl")
    for row in result.rows:
        account_for(account, row)
        assert row["gpu_seconds"] == pytest.approx(2 * 0.5 * (row["sample_seconds"] + row["learn_seconds"]), abs=2e-3)
    assert [line.gpu_seconds for line in account.made("episodes")] == [row["gpu_seconds"] for row in result.rows]


@ray.remote(num_cpus=1, max_retries=0)
def _whereabouts():
    return os.getpid(), ray.get_runtime_context().get_assigned_resources().get("GPU", 0)


def test_a_process_that_had_a_gpu_is_not_used_again(cluster):
    held = [ray.get(on_gpus(_whereabouts, 0.25).options(name="where").remote()) for _ in range(3)]
    assert [gpus for _, gpus in held] == [0.25] * 3
    assert len({process for process, _ in held}) == 3
    assert on_gpus(_whereabouts, 0.0) is _whereabouts


def test_a_trial_reserves_for_itself_and_its_env_runners(cluster, tmp_path):
    config = on_half_a_gpu()
    for runners, bundles in ((0, 1), (1, 2)):
        settings = config.model_copy(update={"sweep": config.sweep.model_copy(update={"num_env_runners": runners})})
        trainable = _trainable(SweepPlan(settings, "base", (), (), tmp_path))
        assert trainable._resources.bundles == [{"CPU": 1.0, "GPU": 0.5}] * bundles
    many = config.model_copy(update={"sweep": config.sweep.model_copy(update={"num_env_runners": 2})})
    with pytest.raises(UserError, match=r"proxy.gpus_per_runner: a trial needs 1.5 GPUs .* the cluster has 1; lower it"):
        _trainable(SweepPlan(many, "base", (), (), tmp_path))


def test_learning_comes_before_tuning_on_the_same_gpus(cluster):
    config = load_config(RECIPE)
    assert gpu_needs(config) == GpuNeeds(scoring=4, learning=4, tuning=4)
    assert _needs(config).gpus == gpu_needs(config).total == 8
    assert (gpus_of(config, "proxy"), gpus_of(config, "target")) == (0.5, 1.0)
    alone = load_config(RECIPE, ["target.parallelism.use_gpu=false", "controller.num_env_runners=4"])
    assert _needs(alone).gpus == 2
    assert _needs(load_config(RECIPE, ["proxy.gpus_per_runner=0"])).gpus == 8
    assert _needs(load_config(RECIPE, ["proxy.gpus_per_runner=1"])).gpus == 12
    with pytest.raises(UserError, match=r"controller.num_env_runners: must be at least 1 with proxy.gpus_per_runner"):
        _needs(load_config(RECIPE, ["controller.num_env_runners=0"]))
