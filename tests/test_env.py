from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxymix.config import SourceConfig
from proxymix.env import ContinualTuningEnv
from proxymix.episode import validation_safety
from proxymix.reward import final_score, paired_reward, paper_reward

LAST, *FOREIGN = (SourceConfig(format="builtin", task=task, world="heldout-1") for task in ("compare", "modular", "lexicon", "reverse"))
"""A third task, and what a later task may be exchanged for."""
KINDS = ["paired", "paper"]


@pytest.fixture(scope="module")
def environments(smoke_config, base_folder, smoke_case):
    return {(kind, architecture): new_env(smoke_config, base_folder, smoke_case, kind, architecture) for kind, architecture in VARIANTS}


VARIANTS = [("paired", "equivariant"), ("paper", "equivariant"), ("paper", "flat")]


def new_env(config, base_folder, case, kind, architecture="equivariant"):
    controller = config.controller
    controller = controller.model_copy(update={"architecture": architecture, "reward": controller.reward.model_copy(update={"kind": kind})})
    return ContinualTuningEnv(config.model_copy(update={"controller": controller}), base_folder, [case])


def episode(env, actions):
    """Observations (the first one included), rewards, and the last info."""
    observation, _ = env.reset()
    observations, rewards = [observation], []
    for index, action in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        assert not truncated
        assert terminated == (index == len(actions) - 1)
    return np.array(observations), rewards, info


def actions_for(case, seed=0, slots=5):
    return np.random.default_rng(seed).normal(size=(2 * len(case.tasks), slots)).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
# The action is a vector of logits: bounds of ±20 are what it means, not a range to rescale to ±1.
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized.*")
# It is built by hand, not through gymnasium's registry, which has nothing to add here.
@pytest.mark.filterwarnings("ignore:.*not initialized through the environment registry.*", "ignore:.*render modes.*")
def test_it_is_a_gymnasium_environment(environments, variant):
    check_env(environments[variant], skip_render_check=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_case_and_actions_give_the_same_episode(environments, smoke_case, variant):
    first, second = (episode(environments[variant], actions_for(smoke_case)) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_an_episode_is_every_stage_of_every_task(environments, smoke_case):
    observations, rewards, info = episode(environments["paired", "equivariant"], actions_for(smoke_case))
    assert len(rewards) == len(smoke_case.tasks) * 2
    assert environments["paired", "equivariant"].run.done
    assert set(info["accuracies"]) == {"safety", "general", "table_small", "roleplay"}
    assert 0 < info["replay_share"] < 1
    assert np.isfinite(observations).all()


def test_the_paired_reward_comes_once_and_is_the_distance_from_the_references(environments, smoke_case):
    _, rewards, info = episode(environments["paired", "equivariant"], actions_for(smoke_case))
    assert rewards[:-1] == [0.0] * 3
    assert info["score"] == final_score(info["accuracies"]) == pytest.approx(np.mean(list(info["accuracies"].values())))
    assert rewards[-1] == paired_reward(info["score"], smoke_case.reference_scores, 0.02) == pytest.approx((info["score"] - 0.30) / 0.02, abs=1e-6)


def test_the_papers_reward_comes_at_every_stage(environments, smoke_case):
    env = environments["paper", "equivariant"]
    env.reset()
    for action in actions_for(smoke_case):
        trained = env.run.observe().current.name
        reward = env.step(action)[1]
        expected = paper_reward(env.run.observe(), trained, lambda_=1.0, beta=0.5, safety=safety_now(env.run))
        assert reward == pytest.approx(expected)
        assert reward != 0


def safety_now(run):
    anchor = run.safety_anchor
    return validation_safety(anchor, run.learner.accuracies({"safety": anchor.validation})["safety"], 1.0)


def test_actions_decide_the_mixture(environments, smoke_case):
    env = environments["paired", "equivariant"]
    little, much = (np.full((4, 5), value, np.float32) for value in (-20.0, 20.0))
    shares = [episode(env, actions)[2]["replay_share"] for actions in (little, much)]
    assert shares == pytest.approx([0.0, 1.0], abs=1e-6)


def test_cases_are_chosen_not_met_in_turn(smoke_config, base_folder, smoke_case):
    env = new_env(smoke_config, base_folder, smoke_case, "paired")
    env.stages.cases = [smoke_case, replace(smoke_case, name="other", tasks=smoke_case.tasks[::-1])]
    assert [env.reset()[1]["case"] for _ in range(2)] == ["smoke", "smoke"]
    env.select_case(3)
    assert env.reset()[1]["case"] == "other"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(1, 2), foreign=st.permutations(FOREIGN), steps=st.integers(1, 5), seed=st.integers(0, 99))
def test_nothing_before_a_task_depends_on_its_data(environments, smoke_case, kind, position, foreign, steps, seed):
    """Exchange the data and the length of a task and of all after it: every decision, reward and observation before it stays to the bit."""
    env = environments[kind, "equivariant"]
    three = replace(smoke_case, tasks=(*smoke_case.tasks, LAST), steps_per_stage=(2, 2, 2))
    later = 3 - position
    other = replace(three, tasks=(*three.tasks[:position], *foreign[:later]), steps_per_stage=(*three.steps_per_stage[:position], *[steps] * later))
    kept, seen = 2 * position, []  # stages of the tasks that stay
    for case in (three, other):
        env.stages.cases = [case]
        observations, rewards, _ = episode(env, actions_for(case, seed))
        seen.append(
            (observations[:kept].tolist(), rewards[:kept], [dict(record.decision.weights) for record in env.stages.episodes[0].records[:kept]])
        )
    env.stages.cases = [smoke_case]
    assert seen[0] == seen[1]
