"""What the guard is calibrated on, as Ray tasks: the run it would be in process, made once, and none without its controller."""

import warnings
from functools import partial

import pytest
from own_ray import own_ray

from proxymix.account import Account
from proxymix.cases import draw_cases
from proxymix.continual import run_continual
from proxymix.controllers.baselines import DeclaredFallback, UniformReplay
from proxymix.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    from cluster.guard_runs import run_guard_cases

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")]


@pytest.fixture(scope="module")
def cluster():
    with own_ray(2, {"OMP_NUM_THREADS": "1"}):
        yield


def test_guard_runs_are_made_once_and_not_without_the_controller(cluster, smoke_config, smoke_builder, base_folder, tmp_path):
    config = smoke_config.model_copy(update={"cache_root": str(tmp_path / "cache")})
    cases = draw_cases(config.controller.curriculum, config.tuning, 1, seed=0, label="guard")
    accounts = [Account(tmp_path / name) for name in ("cold.jsonl", "warm.jsonl")]
    steer = partial(UniformReplay, 0.4)
    found = [run_guard_cases(config, base_folder, cases, steer, "ab", account, lambda done, total: None) for account in accounts]
    run = smoke_builder.build(cases[0])
    run_continual(run, UniformReplay(0.4))
    assert found == [[run.observe()]] * 2
    assert [len(account.spent()) for account in accounts] == [1, 0]
    assert [line.flops for account in accounts for line in account.made("guard")] == [run.flops] * 2
    away = partial(DeclaredFallback, UniformReplay(0.4), "away")
    with pytest.raises(UserError, match="cannot be calibrated without the controller"):
        run_guard_cases(config, base_folder, cases, away, "cd", accounts[0], lambda done, total: None)
