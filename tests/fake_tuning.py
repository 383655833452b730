"""A stand-in for proxy tuning with the real observations and actions: fast, and its best action is known."""

import os
import time
from functools import partial

import gymnasium
import numpy as np

from proxymix.cases import Case
from proxymix.config import Config, SourceConfig
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.types import SourceReading, StageBoundary

ANCHORS = 2


def boundary(rng, num_past=2, stage=1, anchors=ANCHORS):
    def losses():
        return tuple(rng.uniform(0.1, 3.0, size=3).tolist())

    sources = [SourceReading(f"anchor{i}", "anchor", losses(), 0.4) for i in range(anchors)]
    sources += [SourceReading(f"task{i}", "past", losses(), 0.5, age=i % 2, interval=1 + i % 3) for i in range(num_past)]
    sources.append(SourceReading(f"task{num_past}", "current", losses()))
    return StageBoundary(num_past, stage, 4, tuple(sources))


def tiny_config(architecture="equivariant", **controller):
    settings = {
        "architecture": architecture,
        "max_sources": 6,
        "episodes": 8,
        "episodes_per_iteration": 4,
        "num_env_runners": 0,
        "proxies_side_by_side": 2,
    }
    settings["curriculum"] = {"num_tasks": 3, "num_cases": 2}
    tuning = {"stages_per_task": 2}
    return Config.model_validate(
        {"name": "tiny", "seed": 5, "sequence": {"tasks": "long@heldout-0"}, "controller": settings | controller, "tuning": tuning}
    )


def fake_cases(count=2):
    task = SourceConfig(format="builtin", task="copy", world="train-0")
    return [Case(f"case{i}", (task,) * 3, (1, 1, 1), i, reference_scores=(0.25, 0.35)) for i in range(count)]


class FakeTuning(gymnasium.Env):
    """Three tasks of two stages; J is the mean replay share, the paired reward what it exceeds the references by."""

    def __init__(self, config, base_folder, cases):
        controller = config.controller
        self.config, self.cases, self.case_index, self.slots = config, cases, 0, controller.max_sources
        parameters = initial_parameters(controller.architecture, controller.hidden_units, self.slots, np.random.default_rng(0))
        self.policy = build_policy(controller.architecture, parameters, slots=self.slots)
        size = len(self.policy.observe(boundary(np.random.default_rng(0))))
        self.observation_space = gymnasium.spaces.Box(-100.0, 100.0, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-20.0, 20.0, (self.slots,), np.float32)

    def select_case(self, index):
        self.case_index = index % len(self.cases)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.rng, self.stage, self.shares = np.random.default_rng(self.cases[self.case_index].seed), 0, []
        return self._observe(), {}

    def step(self, action):
        weights = self.policy.mixture(np.asarray(action, dtype=np.float64), self.boundary)
        self.shares.append(1.0 - float(weights[-1]))
        self.stage += 1
        done, score = self.stage == 6, float(np.mean(self.shares))
        info = {"score": score, "replay_share": score, "case": self.cases[self.case_index].name} if done else {}
        reward = (score - np.mean(self.cases[self.case_index].reference_scores)) / 0.1 if done else 0.0
        return self._observe(), float(reward), done, False, info

    def _observe(self):
        self.boundary = boundary(self.rng, num_past=min(self.stage // 2, 2), stage=self.stage % 2)
        return self.policy.observe(self.boundary).astype(np.float32)


class DyingTuning(FakeTuning):
    """Takes its env runner with it once."""

    def __init__(self, marker, *args):
        super().__init__(*args)
        self.marker = marker

    def step(self, action):
        if self.stage == 3 and self.is_first():
            self.fail()
        return super().step(action)

    def is_first(self):
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def fail(self):
        os._exit(1)


class HangingTuning(DyingTuning):
    """Stops answering, once."""

    def fail(self):
        time.sleep(600)


class LaterHangingTuning(HangingTuning):
    """The same in the second iteration, which is the first on this case."""

    def is_first(self):
        return self.case_index == 1 and super().is_first()


class SlowTuning(FakeTuning):
    """Leaves time to be killed in."""

    def reset(self, **options):
        time.sleep(0.1)
        return super().reset(**options)


def in_parallel(environment):
    """What `train_policy` wants, of a fake single environment."""

    def make(config, base_folder, cases, num_envs):
        return FakeTunings([partial(environment, config, base_folder, cases)] * num_envs)

    return make


class FakeTunings(gymnasium.vector.SyncVectorEnv):
    def select_case(self, index):
        self.call("select_case", index)
