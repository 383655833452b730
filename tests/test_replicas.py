"""Proxies side by side are the proxies one by one: their steps, their readings, their episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from proxymix.config import SourceConfig, TuningConfig
from proxymix.controllers.baselines import baseline
from proxymix.data.encoding import gather
from proxymix.env import ContinualTuningEnv, ParallelTuningEnv
from proxymix.errors import UserError
from proxymix.learners.learner import Learner, NonFiniteLossError
from proxymix.learners.models import load_model
from proxymix.search import score_together

TUNING = TuningConfig(learning_rate=3e-3, warmup_fraction=0.25, weight_decay=0.1, max_grad_norm=0.5)
REPLICAS, STEPS = 3, 8
TOLERANCE = 1e-4
"""Of losses, over a whole episode: padding to another replica's length and batched products change the order of fp32 sums."""


def new_learner(base_folder, num_replicas):
    return Learner(load_model(base_folder, "lean", num_replicas=num_replicas), TUNING)


@pytest.fixture(scope="module")
def splits(smoke_builder, smoke_case):
    """Of different widths, with answers of different lengths."""
    return [smoke_builder.source(spec).train for spec in smoke_case.tasks]


@pytest.fixture(scope="module")
def plans(splits):
    """A batch for every replica and step; each replica sees other rows, and the splits in other proportions."""
    rng = np.random.default_rng(0)

    def batch(replica):
        owners = (rng.random(6) < replica / 2).astype(int)
        return gather(splits, [(int(owner), int(rng.integers(len(splits[owner])))) for owner in owners])

    return [[batch(replica) for _ in range(STEPS)] for replica in range(REPLICAS)]


@pytest.fixture
def together(base_folder):
    return new_learner(base_folder, REPLICAS)


def test_steps_are_those_of_each_alone(base_folder, together, plans):
    assert len({batch.input_ids.shape[1] for plan in plans for batch in plan}) > 1
    assert len({batch.num_answer_tokens for plan in plans for batch in plan}) > 1
    together.begin_task(STEPS)
    losses = np.array([together.train_steps(batches) for batches in zip(*plans, strict=True)])
    for index, plan in enumerate(plans):
        alone = new_learner(base_folder, 1)
        alone.begin_task(STEPS)
        np.testing.assert_allclose(losses[:, index], [alone.train_step(batch) for batch in plan], atol=1e-5)
        assert torch.allclose(together.flat[index], alone.flat[0], atol=1e-4)
    assert not torch.allclose(together.flat[0], together.flat[1], atol=1e-3)


def test_readings_are_those_of_each_alone(base_folder, together, plans, smoke_builder, smoke_case):
    together.begin_task(STEPS)
    for batches in zip(*plans, strict=True):
        together.train_steps(batches)
    probes = {source.name: source.validation for source in [*smoke_builder.anchors, *map(smoke_builder.source, smoke_case.tasks)]}
    losses, rights = together.losses_of_all(probes), together.accuracies_of_all(probes)
    assert losses[0] != losses[1]
    for index in range(REPLICAS):
        alone = new_learner(base_folder, 1)
        with torch.no_grad():
            alone.flat.copy_(together.flat[index])
        assert losses[index] == pytest.approx(alone.losses(probes), abs=1e-5)
        assert {name: right.tolist() for name, right in rights[index].items()} == {n: r.tolist() for n, r in alone.accuracies(probes).items()}


def test_state_and_base_hold_every_replica(base_folder, together, plans):
    steps = list(zip(*plans, strict=True))
    together.begin_task(STEPS)
    for batches in steps[:4]:
        together.train_steps(batches)
    state = {name: value.clone() for name, value in together.state_dict().items()}
    expected = [together.train_steps(batches) for batches in steps[4:]]
    other = new_learner(base_folder, REPLICAS)
    other.load_state_dict(state)
    assert [other.train_steps(batches) for batches in steps[4:]] == expected
    other.restore_base()
    assert torch.equal(other.flat, new_learner(base_folder, REPLICAS).flat)


def test_one_replica_gone_wrong_is_said_before_any_changes(together, plans, monkeypatch):
    together.begin_task(STEPS)
    before, logits = together.flat.detach().clone(), together.model.logits
    factor = torch.tensor([1.0, torch.nan, 1.0])[:, None, None, None]
    monkeypatch.setattr(together.model, "logits", lambda *asked: logits(*asked) * factor)
    with pytest.raises(NonFiniteLossError, match="loss became nan at optimizer step 0"):
        together.train_steps([plan[0] for plan in plans])
    assert torch.equal(together.flat, before)


def test_transformers_has_no_replicas(base_folder):
    with pytest.raises(UserError, match=r"proxy.model.implementation: must be lean to tune 2 proxies side by side"):
        load_model(base_folder, "transformers", num_replicas=2)


def with_reward(config, kind):
    controller = config.controller
    return config.model_copy(update={"controller": controller.model_copy(update={"reward": controller.reward.model_copy(update={"kind": kind})})})


@pytest.mark.parametrize("kind", ["paired", "paper"])
def test_episodes_are_those_of_the_single_environment(smoke_config, base_folder, smoke_case, kind):
    config = with_reward(smoke_config, kind)
    third = SourceConfig(format="builtin", task="reverse", world="heldout-1")
    case = replace(smoke_case, tasks=(*smoke_case.tasks, third), steps_per_stage=(4, 6, 5))
    actions = np.random.default_rng(1).normal(scale=2.0, size=(6, REPLICAS, 5)).astype(np.float32)
    parallel = ParallelTuningEnv(config, base_folder, [smoke_case, case], REPLICAS)
    parallel.select_case(1)
    together = [parallel.reset()[0]]
    rewards = []
    for action in actions:
        observations, reward, terminated, truncated, infos = parallel.step(action)
        together.append(observations)
        rewards.append(reward)
    assert terminated.all()
    assert not truncated.any()
    single = ContinualTuningEnv(config, base_folder, [case])
    for index in range(REPLICAS):
        alone = [single.reset()[0]]
        for stage, action in enumerate(actions[:, index]):
            observation, reward, _, _, info = single.step(action)
            alone.append(observation)
            assert reward == pytest.approx(rewards[stage][index], abs=TOLERANCE)
        np.testing.assert_allclose(np.stack(together)[:, index], np.stack(alone), atol=20 * TOLERANCE)  # Slopes and logarithms magnify.
        assert infos["score"][index] == info["score"]
        assert {name: values[index] for name, values in infos["accuracies"].items() if name[0] != "_"} == info["accuracies"]
        assert infos["num_tokens"][index] == info["num_tokens"]
    assert len(set(infos["num_tokens"].tolist())) > 1  # or the mixtures were all the same


def test_the_base_is_read_once_however_many_begin_from_it(smoke_config, base_folder, smoke_case, monkeypatch):
    env = ParallelTuningEnv(smoke_config, base_folder, [smoke_case], REPLICAS)
    learner, asked = env.stages.builder.learner, []
    monkeypatch.setattr(learner, "losses_of_all", lambda probes, read=learner.losses_of_all: asked.append(set(probes)) or read(probes))
    env.reset()
    assert len(asked) == 1
    single = ContinualTuningEnv(smoke_config, base_folder, [smoke_case])
    single.reset()
    runs = [episode.run for episode in env.stages.episodes]
    assert [run.flops for run in runs] == [single.run.flops] * REPLICAS  # Each has cost what it would alone.
    assert [run.state_dict() for run in runs] == [runs[0].state_dict()] * REPLICAS
    score_together(env.stages.builder, smoke_case, [baseline("no_replay")])
    assert len(asked) == 2 + len(smoke_case.tasks) * smoke_config.tuning.stages_per_task


def test_they_begin_anew_together(smoke_config, base_folder, smoke_case):
    env = ParallelTuningEnv(smoke_config, base_folder, [smoke_case], 2)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    first, _ = env.reset()
    assert first in env.observation_space
    action = np.zeros((2, 5), np.float32)
    done = [env.step(action)[2].tolist() for _ in range(4)]
    assert done == [[False, False]] * 3 + [[True, True]]
    observations, rewards, terminated, _, info = env.step(action)
    np.testing.assert_array_equal(observations, first)
    assert (rewards.tolist(), terminated.tolist(), info) == ([0.0, 0.0], [False, False], {})
