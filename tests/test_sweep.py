"""Trials under Ray Tune, on a stand-in for proxy tuning: who goes on, who wins, what survives a kill."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
from fake_sweep import LEARNING_RATE, SIGMA, judge_learning_rate, judge_sigma, judge_what_was_learnt, plan, ray_of_trials, timeless
from fake_tuning import DyingTuning, FakeTuning, fake_cases, in_parallel, tiny_config

from cluster.policy_training import train_policy
from cluster.sweep import account_for, run_sweep
from cluster.sweep_trial import LINEAGE, RUNGS
from proxymix.account import Account, total_flops
from proxymix.artifacts import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.sweep_result import best_trial

pytestmark = pytest.mark.cluster

RUNG = {"rung": 1, "episodes": 4, "flops": 10, "cpu_seconds": 1.0, "num_dropped": 0}


@pytest.fixture(scope="module")
def cluster():
    with ray_of_trials():
        yield


class FlatteringTuning(FakeTuning):
    """Pays for sigma: the larger it is, the higher the return, whatever the policy does."""

    def step(self, action):
        observation, reward, done, truncated, info = super().step(action)
        return observation, reward + 100 * self.config.controller.initial_sigma * done, done, truncated, info


class CountedTuning(FakeTuning):
    """Leaves a line for every episode."""

    def __init__(self, log, *args):
        super().__init__(*args)
        self.log = log

    def step(self, action):
        observation, reward, done, truncated, info = super().step(action)
        if done:
            append_jsonl(self.log, os.getpid())
        return observation, reward, done, truncated, info


def fail_for_large_sigma(config, base_folder, parameters, cases):
    if config.controller.initial_sigma > 0.5:
        raise ValueError("the judge is out of order")
    return judge_sigma(config, base_folder, parameters, cases)


def sigma(trial):
    return trial["overrides"][SIGMA]


def test_a_trial_with_the_highest_return_and_the_lowest_validation_loses(cluster, tmp_path):
    trials = run_sweep(plan(tmp_path, judge_sigma, FlatteringTuning, episodes=4))
    returns = [trial["rungs"][-1]["training_return"] for trial in trials]
    best, flattered = best_trial(trials), max(trials, key=lambda trial: trial["rungs"][-1]["training_return"])
    assert sigma(best) == min(map(sigma, trials))
    assert sigma(flattered) == max(map(sigma, trials))
    assert best["rungs"][-1]["training_return"] == min(returns)


def test_asha_stops_the_worst_early_and_lets_the_best_through(cluster, tmp_path):
    seen = []
    sweep = plan(tmp_path, judge_sigma, scheduler="asha", search="optuna", num_trials=6, reduction_factor=2)
    trials = run_sweep(sweep, lambda done, total: seen.append((done, total)))
    assert [trial["trial"] for trial in trials] == list(range(6))
    finished = [trial for trial in trials if trial["status"] == "finished"]
    assert min(trials, key=sigma) in finished
    assert {trial["status"] for trial in trials} == {"finished", "stopped"}
    assert all(len(trial["rungs"]) == 4 for trial in finished)
    account = Account(tmp_path / "costs.jsonl")
    total = account_for(account, tmp_path)
    assert total["episodes"] == sum(trial["rungs"][-1]["episodes"] for trial in trials) < 6 * 16
    assert total["flops"] == 10 * sum(len(trial["rungs"]) for trial in trials) == total_flops(account.made("sweep_trial"))
    assert account_for(account, tmp_path) == total  # Each line is written once.
    assert len(account.lines()) == sum(len(trial["rungs"]) for trial in trials)
    assert seen[-1] == (24, 24)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_two_trials_of_one_configuration_are_one_training(cluster, tmp_path):
    played = partial(CountedTuning, tmp_path / "played.jsonl")
    sweep = plan(tmp_path / "sweep", judge_what_was_learnt, played, space={SIGMA: {"choice": [0.5]}}, num_trials=2, max_concurrent=2)
    first, second = run_sweep(sweep)
    assert (first["status"], len(first["rungs"])) == ("finished", 4)
    assert second == first | {"trial": 1}
    assert len(list(read_jsonl(tmp_path / "played.jsonl"))) == 16


def test_the_last_rung_is_the_controller_that_train_controller_would_freeze(cluster, tmp_path):
    sweep = plan(tmp_path / "sweep", judge_what_was_learnt, num_trials=2)
    for trial in run_sweep(sweep):
        for rungs, episodes in ((2, 8), (4, 16)):
            config = tiny_config(episodes=episodes, initial_sigma=sigma(trial))
            result = train_policy(config, "base", fake_cases(), tmp_path / f"{trial['trial']}-{rungs}", lambda row: None, in_parallel(FakeTuning))
            assert trial["rungs"][rungs - 1]["validation_score"] == float(result.parameters["context_gain"].sum())


def test_a_population_inherits_weights_and_counts_no_episode_twice(cluster, tmp_path):
    space = {LEARNING_RATE: {"log_uniform": [1e-3, 0.1]}}
    trials = run_sweep(plan(tmp_path, judge_learning_rate, scheduler="pbt", search=None, space=space, num_trials=3, episodes=12))
    assert all(len(trial["rungs"]) == 3 for trial in trials)
    own = {path.parent.name: len(list(read_jsonl(path.with_name(RUNGS)))) for path in tmp_path.glob("trainings/*/lineage.json")}
    parents = [read_json(tmp_path / "trainings" / training / LINEAGE)["parent"] for training in own]
    inherited = [parent for parent in parents if parent]
    assert inherited
    assert all(own[parent["training"]] >= parent["rung"] > 0 for parent in inherited)
    assert all(1e-3 <= trial["overrides"][LEARNING_RATE] <= 0.1 for trial in trials)
    inherited_rungs = {training: parent["rung"] for training, parent in zip(own, parents, strict=True) if parent}
    fresh = sum(max(0, number - inherited_rungs.get(training, 0)) for training, number in own.items())  # Who inherits the last rung writes none.
    assert account_for(Account(tmp_path / "costs.jsonl"), tmp_path)["episodes"] == 4 * fresh


def test_a_member_that_inherits_the_last_rung_costs_nothing(tmp_path):
    first, second = tmp_path / "trainings/first", tmp_path / "trainings/second"
    write_json(first / LINEAGE, {"overrides": {}, "parent": None})
    write_jsonl(first / RUNGS, [RUNG | {"rung": rung, "episodes": 4 * rung} for rung in (1, 2, 3)])
    write_json(second / LINEAGE, {"overrides": {SIGMA: 0.5}, "parent": {"training": "first", "rung": 3}})
    assert account_for(Account(tmp_path / "costs.jsonl"), tmp_path) == {"episodes": 12, "flops": 30, "num_dropped": 0}


def test_lost_episodes_of_a_rung_are_spent_and_not_made(tmp_path):
    write_json(tmp_path / "trainings/one" / LINEAGE, {"overrides": {}, "parent": None})
    lossy = {"num_dropped": 2, "dropped_flops": 4, "dropped_cpu_seconds": 0.5}
    write_jsonl(tmp_path / "trainings/one" / RUNGS, [RUNG, RUNG | lossy | {"rung": 2, "episodes": 8}])
    account = Account(tmp_path / "costs.jsonl")
    for _ in range(2):  # The second time as a resumed sweep.
        assert account_for(account, tmp_path) == {"episodes": 8, "flops": 20, "num_dropped": 2}
    lines = [(line.id, line.flops, line.cpu_seconds, line.episodes) for line in account.lines()]
    assert lines == [("one/rung1", 10, 1.0, 4), ("one/rung2", 10, 1.0, 4), ("one/rung2", 4, 0.5, 2)]
    assert (total_flops(account.made("sweep_trial")), total_flops(account.spent())) == (20, 24)


def test_a_trial_tells_what_it_lost(cluster, tmp_path):
    disturbed = partial(DyingTuning, tmp_path / "marker")
    (trial,) = run_sweep(plan(tmp_path / "sweep", judge_sigma, disturbed, num_trials=1, episodes=8, num_env_runners=1))
    assert [rung["num_dropped"] for rung in trial["rungs"]] == [2, 0]
    assert trial["rungs"][0]["dropped_cpu_seconds"] > 0
    assert account_for(Account(tmp_path / "costs.jsonl"), tmp_path / "sweep")["num_dropped"] == 2


def test_a_finished_rung_is_found_again_even_if_tune_has_lost_all(cluster, tmp_path):
    sweep = plan(tmp_path / "sweep", judge_what_was_learnt)
    first = run_sweep(sweep)
    curves = {path: path.read_bytes() for path in tmp_path.glob("sweep/trainings/*/learning_curve.jsonl")}
    assert len(curves) == 4
    (tmp_path / "sweep/tune").rename(tmp_path / "lost")
    assert run_sweep(sweep) == first
    assert {path: path.read_bytes() for path in tmp_path.glob("sweep/trainings/*/learning_curve.jsonl")} == curves  # with their seconds


def test_env_runners_of_its_own_change_nothing(cluster, tmp_path):
    alone = run_sweep(plan(tmp_path / "alone", judge_what_was_learnt, num_trials=2, episodes=4))
    helped = run_sweep(plan(tmp_path / "helped", judge_what_was_learnt, num_trials=2, episodes=4, num_env_runners=1))
    assert timeless(helped) == timeless(alone)


def test_a_trial_that_fails_is_told_and_the_others_go_on(cluster, tmp_path):
    trials = run_sweep(plan(tmp_path, fail_for_large_sigma, episodes=4))
    failed = [trial for trial in trials if trial["status"] == "failed"]
    assert {sigma(trial) > 0.5 for trial in failed} == {True}
    assert all("the judge is out of order" in trial["error"] for trial in failed)
    assert sigma(best_trial(trials)) < 0.5


def test_a_trial_that_no_node_can_hold_is_refused(cluster, tmp_path):
    sweep = plan(tmp_path, judge_sigma, num_env_runners=4)
    tree = sweep.config.model_dump(mode="json")
    tree["controller"]["proxies_side_by_side"] = 1  # A group of episodes for each runner.
    with pytest.raises(UserError, match=r"sweep.num_env_runners: a trial needs 5 Ray CPUs"):
        run_sweep(replace(sweep, config=Config.model_validate(tree)))


def test_trials_are_plain_json(cluster, tmp_path):
    trials = run_sweep(plan(tmp_path, judge_sigma, num_trials=1, episodes=4))
    assert json.loads(json.dumps(trials, allow_nan=False)) == trials
    training = trials[0]["rungs"][0]["training"]
    assert list(read_jsonl(tmp_path / "trainings" / training / RUNGS)) == trials[0]["rungs"]
