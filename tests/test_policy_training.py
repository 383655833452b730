import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from fake_tuning import DyingTuning, FakeTuning, HangingTuning, LaterHangingTuning, fake_cases, in_parallel, tiny_config
from own_ray import own_ray

import cluster.episode_groups as episode_groups
from cluster.policy_training import LEARNING_CURVE, freeze_controller, train_policy
from cluster.reference_runs import with_references
from cluster.training_checkpoint import CHECKPOINT
from proxymix.account import Account
from proxymix.artifacts import read_jsonl
from proxymix.cases import draw_cases
from proxymix.config import Config
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.policy import initial_parameters
from proxymix.errors import UserError

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    with own_ray(4, {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}):
        yield


def train(out, config=None, environment=FakeTuning, on_iteration=lambda row: None, cases=None):
    return train_policy(config or tiny_config(), "base", cases or fake_cases(), out, on_iteration, in_parallel(environment))


def assert_same(first, second):
    assert first.parameters.keys() == second.parameters.keys()
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(value, second.parameters[name])


def timeless(rows):
    return [
        {key: value for key, value in row.items() if key not in ("sample_seconds", "learn_seconds", "cpu_seconds", "num_dropped")} for row in rows
    ]


class InterruptedTrainingError(Exception):
    pass


class FaultyTuning(FakeTuning):
    def step(self, action):
        raise ValueError("the proxy is out of order")


@pytest.mark.parametrize(
    ("architecture", "exploration", "learning_rate", "num_iterations"),
    [("equivariant", "per_episode", 0.04, 10), ("flat", "per_episode", 0.003, 10), ("flat", "per_decision", 0.003, 20)],
)
def test_learns_to_replay_more_where_that_pays(cluster, tmp_path, architecture, exploration, learning_rate, num_iterations):
    config = tiny_config(
        architecture,
        exploration=exploration,
        hidden_units=32 if architecture == "flat" else 0,
        episodes=16 * num_iterations,
        episodes_per_iteration=16,
        ppo={"learning_rate": learning_rate},
    )
    result = train(tmp_path, config)
    scores = [row["score_mean"] for row in result.rows]
    assert np.mean(scores[-2:]) > np.mean(scores[:2]) + 0.08
    assert len(result.rows) == num_iterations
    assert result.cost["episodes"] == 16 * num_iterations
    assert result.cost["stages"] == 16 * num_iterations * 6


def test_minibatches_are_drawn_from_the_seed(cluster, tmp_path):
    config = tiny_config(ppo={"minibatch_size": 8, "num_epochs": 2})
    assert_same(train(tmp_path / "a", config), train(tmp_path / "b", config))


def test_same_parameters_from_any_number_of_env_runners_and_another_seed_differs(cluster, tmp_path):
    groups = {"episodes": 16, "episodes_per_iteration": 8}  # Four, which three runners cannot share out evenly.
    local = train(tmp_path / "local", tiny_config(**groups))
    remote = train(tmp_path / "remote", tiny_config(**groups, num_env_runners=3))
    assert_same(local, remote)
    assert timeless(local.rows) == timeless(remote.rows)
    other = train(tmp_path / "other", tiny_config(**groups).model_copy(update={"seed": 6}))
    assert not np.array_equal(other.parameters["context_gain"], local.parameters["context_gain"])


def test_a_resumed_training_ends_like_an_undisturbed_one(cluster, tmp_path):
    config = tiny_config(episodes=16)

    def interrupt(row):
        if row["iteration"] == 1:
            raise InterruptedTrainingError

    whole = train(tmp_path / "whole", config)
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path / "parts", config, on_iteration=interrupt)
    seen = []
    assert_same(train(tmp_path / "parts", config, on_iteration=seen.append), whole)
    assert [row["iteration"] for row in seen] == [2, 3]
    assert timeless(read_jsonl(tmp_path / "parts" / LEARNING_CURVE)) == timeless(whole.rows)


def test_an_iteration_whose_checkpoint_was_never_written_is_done_again(cluster, tmp_path):
    checkpoints = []
    whole = train(tmp_path, on_iteration=lambda row: checkpoints.append((tmp_path / CHECKPOINT).read_bytes()))
    (tmp_path / CHECKPOINT).write_bytes(checkpoints[0])
    again = train(tmp_path)
    assert_same(again, whole)
    assert [row["iteration"] for row in again.rows] == [0, 1]


def test_a_finished_training_is_not_redone(cluster, tmp_path):
    result, seen = train(tmp_path), []
    assert_same(train(tmp_path, environment=FaultyTuning, on_iteration=seen.append), result)
    assert seen == []


def test_a_checkpoint_of_other_settings_is_refused(cluster, tmp_path):
    train(tmp_path)
    with pytest.raises(UserError, match="other settings"):
        train(tmp_path, tiny_config(initial_sigma=0.5))


def test_a_dead_env_runner_costs_time_but_no_number(cluster, tmp_path):
    config = tiny_config(num_env_runners=2)
    undisturbed = train(tmp_path / "undisturbed", config)
    disturbed = train(tmp_path / "disturbed", config, partial(DyingTuning, tmp_path / "marker"))
    assert (tmp_path / "marker").exists()
    assert_same(disturbed, undisturbed)
    assert timeless(disturbed.rows) == timeless(undisturbed.rows)
    assert sum(row["num_dropped"] for row in disturbed.rows) == 2
    assert sum(row["num_dropped"] for row in undisturbed.rows) == 0


@pytest.mark.parametrize(("num_env_runners", "reference_step_s"), [(1, 0.05), (2, None)])
def test_a_hanging_env_runner_is_started_afresh(cluster, tmp_path, monkeypatch, num_env_runners, reference_step_s):
    """In the very first group: the limit comes from the reference runs, or from the group that another runner has finished meanwhile."""
    monkeypatch.setattr(episode_groups, "MIN_TIMEOUT_S", 3.0)
    cases = [replace(case, reference_step_s=reference_step_s) for case in fake_cases()]
    undisturbed = train(tmp_path / "undisturbed")
    config = tiny_config(num_env_runners=num_env_runners)
    disturbed = train(tmp_path / "disturbed", config, partial(HangingTuning, tmp_path / "marker"), cases=cases)
    assert_same(disturbed, undisturbed)
    assert [row["num_dropped"] for row in disturbed.rows] == [2, 0]  # A group; where one runner is all there is, the other was not begun.


def test_a_runner_that_hangs_in_a_later_iteration_is_started_afresh(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(episode_groups, "MIN_TIMEOUT_S", 3.0)
    undisturbed = train(tmp_path / "undisturbed")
    disturbed = train(tmp_path / "disturbed", tiny_config(num_env_runners=1), partial(LaterHangingTuning, tmp_path / "marker"))
    assert_same(disturbed, undisturbed)
    assert [row["num_dropped"] for row in disturbed.rows] == [0, 2]


def test_an_interrupted_training_gives_its_resources_back(cluster, tmp_path):
    def interrupt(row):
        raise InterruptedTrainingError

    with pytest.raises(InterruptedTrainingError):
        train(tmp_path, tiny_config(num_env_runners=2), on_iteration=interrupt)
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 4


def test_a_minibatch_larger_than_the_batch_is_refused(cluster, tmp_path):
    with pytest.raises(UserError, match=r"minibatch_size: must be at most the 24 decisions"):
        train(tmp_path, tiny_config(ppo={"minibatch_size": 25}))


@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_a_fault_of_the_program_is_told_and_not_repeated(cluster, tmp_path, num_env_runners):
    with pytest.raises(RuntimeError, match="the proxy is out of order"):
        train(tmp_path, tiny_config(num_env_runners=num_env_runners), FaultyTuning)


def test_the_policy_is_the_mean_over_the_last_iterations(cluster, tmp_path):
    def mean_of_last(share):
        return train(tmp_path / str(share), tiny_config(episodes=12, average_last=share)).parameters["context_gain"]

    one = [train(tmp_path / f"one{n}", tiny_config(episodes=4 * n, average_last=0.01)).parameters["context_gain"] for n in (1, 2, 3)]
    np.testing.assert_allclose(mean_of_last(1.0), np.mean(one, axis=0), rtol=1e-12)
    np.testing.assert_allclose(mean_of_last(2 / 3), np.mean(one[1:], axis=0), rtol=1e-12)


def test_the_frozen_controller_tells_what_it_was_trained_on(cluster, tmp_path):
    result = train(tmp_path)
    sha256 = freeze_controller(tiny_config(), result, 7_000_000, tmp_path)
    controller = FrozenController.load(tmp_path)
    assert controller.sha256 == sha256
    np.testing.assert_allclose(controller.policy.parameters["context_gain"], result.parameters["context_gain"], rtol=1e-6)
    card = json.loads((tmp_path / "controller.json").read_text())
    assert card["training"]["sequences"] == [["copy"] * 3] * 2
    assert card["training"]["sources"] == ["copy@train-0"]
    assert card["training_cost"]["episodes"] == 8
    assert card["training_flops"] == 7_000_000


def smoke_config(cache_root):
    return Config.model_validate(
        {
            "name": "smoke",
            "cache_root": str(cache_root),
            "sequence": {"tasks": "sharp_shift@heldout-0"},
            "pretraining": {"num_steps": 60},
            "tuning": {"stages_per_task": 2, "steps_per_stage": 8, "batch_size": 8, "buffer_size": 16},
            "controller": {
                "episodes": 8,
                "episodes_per_iteration": 4,
                "num_env_runners": 2,
                "max_sources": 6,
                "curriculum": {"num_tasks": 2, "num_cases": 2},
            },
        }
    )


def test_trains_on_a_real_proxy(cluster, tmp_path):
    from proxymix.learners.pretraining import pretrain_base

    torch.set_num_threads(1)
    config = smoke_config(tmp_path / "cache")
    base = pretrain_base(config, config.proxy.model)
    controller = config.controller
    cases = draw_cases(controller.curriculum, config.tuning, controller.curriculum.num_cases, config.seed)
    cold, warm = Account(tmp_path / "cold.jsonl"), Account(tmp_path / "warm.jsonl")
    bare, cases = cases, with_references(config, base, cases, cold)
    assert all(len(case.reference_scores) == 2 and case.reference_step_s > 0 for case in cases)
    assert with_references(config, base, bare, warm) == cases
    costs = [{line.id: line.flops for line in account.made("reference")} for account in (warm, cold)]
    assert costs[0] == costs[1]
    assert [len(cold.spent()), len(warm.spent())] == [2, 0]
    first, second = (train_policy(config, base, cases, tmp_path / name, lambda row: None) for name in ("first", "second"))
    assert_same(first, second)
    assert timeless(first.rows) == timeless(second.rows)
    assert all(row["flops"] > 0 and row["cpu_seconds"] > 0 for row in first.rows)
    for row, case in zip(first.rows, cases, strict=True):
        assert row["reward_mean"] == pytest.approx((row["score_mean"] - np.mean(case.reference_scores)) / 0.02, abs=1e-3)
    initial = initial_parameters("equivariant", 0, 6, np.random.default_rng(0))
    assert not np.allclose(first.parameters["context_gain"], initial["context_gain"])
