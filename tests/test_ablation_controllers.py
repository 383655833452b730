"""Decisions that last, readings with noise, a reward that leaves safety out: what the ablation's variants are made of."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.continual import run_continual
from proxymix.controllers.baselines import Ramp
from proxymix.controllers.held import HeldDecisions
from proxymix.controllers.noisy_readings import NoisyReadings
from proxymix.env import ContinualTuningEnv
from proxymix.reward import final_score
from proxymix.types import Decision, SourceReading, StageBoundary


class Asked:
    """Counts; says a share that rises with every question."""

    name = "asked"

    def __init__(self):
        self.at = []
        self.closed = False

    def decide(self, boundary):
        self.at.append((boundary.task_index, boundary.stage_index))
        share = len(self.at) / 100
        return Decision({"anchor": share, "now": 1 - share}, self.name)

    def close(self):
        self.closed = True


def boundary(task, stage, num_stages=4, anchor=(0.4, 0.4, 0.7), age=1):
    return StageBoundary(
        task, stage, num_stages, (SourceReading("anchor", "anchor", anchor, anchor[0], age), SourceReading("now", "current", (2.0, 1.5)))
    )


@pytest.mark.parametrize(("every", "asked"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3]), (4, [0]), (9, [0])])
def test_a_decision_is_held_until_the_next_and_never_past_its_task(every, asked):
    inner = Asked()
    held = HeldDecisions(inner, every)
    said = [held.decide(boundary(task, stage)).weights["anchor"] for task in range(2) for stage in range(4)]
    assert inner.at == [(task, stage) for task in range(2) for stage in asked]
    assert len(set(said)) == 2 * len(asked)
    assert said == sorted(said)


def test_a_run_gone_on_with_holds_what_was_decided_before():
    inner, before = Asked(), Decision({"anchor": 0.9, "now": 0.1}, "before")
    held = HeldDecisions(inner, 2, before)
    assert held.decide(boundary(0, 1)) is before
    assert held.decide(boundary(0, 2)) is not before
    assert inner.at == [(0, 2)]


def test_closing_closes_what_can_be_closed():
    inner = Asked()
    HeldDecisions(inner, 2).close()
    HeldDecisions(Ramp(10.0), 2).close()
    assert inner.closed


class Shown:
    """Keeps what it is shown."""

    name = "shown"

    def decide(self, boundary):
        self.boundary = boundary
        return Decision({"anchor": 0.5, "now": 0.5}, self.name)


def shown(at, sigma=0.3, seed=0):
    inner = Shown()
    NoisyReadings(inner, sigma, seed).decide(at)
    return inner.boundary


@given(st.integers(0, 2**16))
def test_noise_belongs_to_a_reading_wherever_it_appears(seed):
    anchor = shown(boundary(0, 2, anchor=(0.4, 0.7, 0.7), age=1), seed=seed).sources[0]
    assert anchor.losses[1] == anchor.losses[2] != 0.7
    assert anchor.reference_loss == anchor.losses[0] != 0.4
    later = shown(boundary(0, 3, anchor=(0.4, 0.7, 0.7, 0.5), age=0), seed=seed).sources[0]
    assert later.losses[:3] == anchor.losses


def test_noise_is_as_strong_as_it_says_and_none_is_none():
    at = boundary(0, 0)
    assert shown(at, sigma=0.0) == at
    logs = [np.log(shown(at, sigma=0.3, seed=seed).current.losses[-1] / 1.5) for seed in range(400)]
    assert np.std(logs) == pytest.approx(0.3, rel=0.15)
    assert np.mean(logs) == pytest.approx(0.0, abs=0.06)


def test_noise_leaves_ages_and_roles():
    at = boundary(1, 1)
    for before, after in zip(at.sources, shown(at).sources, strict=True):
        assert replace(after, losses=before.losses, reference_loss=before.reference_loss) == before


def variant(config, **changes):
    return config.model_copy(update={"controller": config.controller.model_copy(update=changes)})


def played(env, actions):
    env.reset()
    rewards, info = [], {}
    for action in actions:
        _, reward, terminated, _, info = env.step(action)
        rewards.append(reward)
    assert terminated
    return rewards, info


@pytest.mark.parametrize("kind", ["paired", "paper"])
def test_in_training_too_a_decision_lasts(smoke_config, base_folder, smoke_case, kind):
    reward = smoke_config.controller.reward.model_copy(update={"kind": kind})
    often, seldom = (ContinualTuningEnv(variant(smoke_config, decide_every=every, reward=reward), base_folder, [smoke_case]) for every in (1, 2))
    actions = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    rewards, info = played(seldom, actions)
    held = seldom.stages.episodes[0].records
    assert [dict(held[i].decision.weights) == dict(held[i + 1].decision.weights) for i in range(3)] == [True, False, True]
    each, same = played(often, np.repeat(actions, 2, axis=0))
    assert info["score"] == same["score"]
    assert info["replay_share"] == pytest.approx(same["replay_share"], abs=0.03)  # A flat repeat of logits sees the same sources.
    assert rewards == pytest.approx([sum(each[:2]), sum(each[2:])])


def test_safety_can_be_left_out_of_the_reward(smoke_config, base_folder, smoke_case):
    env = ContinualTuningEnv(
        variant(smoke_config, reward=smoke_config.controller.reward.model_copy(update={"safety": False})), base_folder, [smoke_case]
    )
    rewards, info = played(env, np.zeros((4, 5), np.float32))
    assert info["score"] == pytest.approx(np.mean([value for name, value in info["accuracies"].items() if name != "safety"]))
    assert len(info["accuracies"]) == 4
    assert rewards[-1] == pytest.approx((info["score"] - np.mean(smoke_case.reference_scores)) / 0.02)
    assert final_score(info["accuracies"], leave_out="nobody") == final_score(info["accuracies"])


def test_a_held_controller_steers_a_run(smoke_builder, smoke_case):
    records = run_continual(smoke_builder.build(smoke_case), HeldDecisions(Ramp(10.0), 2))
    assert [record.boundary.stage_index for record in records] == [0, 1, 0, 1]
    assert records[0].decision is records[1].decision
    assert records[2].decision is records[3].decision is not records[0].decision
