"""The proxy environments: Gymnasium's shells over the one stage loop. A step lasts from one decision to the next
(`controller.decide_every` stages of real tuning), an episode is one whole run.

reset: case → ContinualRun → observation          step: action → mixture → advance_together → observation, reward

`ContinualTuningEnv` tunes one proxy. `ParallelTuningEnv` tunes several through the same case as one batched model, to the same episodes
up to fp32 rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from proxymix.cases import Case, proxy_builder
from proxymix.config import Config
from proxymix.continual import ContinualRun, advance_together
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.episode import Episode, Observation, StepResult
from proxymix.types import Decision, SourceReading, StageBoundary

ACTION_BOUND = 20.0
"""Logits beyond it change nothing that whole samples could show."""

_EXAMPLE = StageBoundary(0, 0, 1, (SourceReading("task", "current", (1.0,)),))


class ProxyStages:
    """`num_proxies` episodes of one case at a time, in step: what both environments are shells of."""

    def __init__(self, config: Config, base_folder: str, cases: Sequence[Case], num_proxies: int) -> None:
        """Args: `cases` to choose from by `case_index`; at first the first."""
        self.config, self.cases = config, list(cases)
        controller = config.controller
        parameters = initial_parameters(controller.architecture, controller.hidden_units, controller.max_sources, np.random.default_rng(0))
        self.policy = build_policy(controller.architecture, parameters, controller.max_sources, controller.without)
        self.builder = proxy_builder(config, base_folder, num_replicas=num_proxies)
        self.num_proxies, self.case_index = num_proxies, 0
        self.episodes: list[Episode] = []
        size = len(self.policy.observe(_EXAMPLE))
        self.observation_space = Box(-100.0, 100.0, (size,), np.float32)
        self.action_space = Box(-ACTION_BOUND, ACTION_BOUND, (controller.max_sources,), np.float32)

    def reset(self) -> list[Observation]:
        """Fresh proxies at the first boundary of the selected case."""
        case = self.cases[self.case_index % len(self.cases)]
        runs = [self.builder.build(case) for _ in range(self.num_proxies)]
        runs[0].begin(runs[1:])
        self.episodes = [Episode(self.config.controller.reward, self.policy, case, run) for run in runs]
        return [episode.observation() for episode in self.episodes]

    def step(self, actions: Sequence[NDArray[np.float32]]) -> list[StepResult]:
        """What a decision lasts, `controller.decide_every` stages or to the end of the task, of every proxy with its own action's mixture."""
        decisions = [episode.decision(action) for episode, action in zip(self.episodes, actions, strict=True)]
        results = self._stage(decisions)
        while self.episodes[0].run.stage_index % self.config.controller.decide_every:
            later = self._stage(decisions)
            results = [(seen, before + reward, done, info) for (_, before, _, _), (seen, reward, done, info) in zip(results, later, strict=True)]
        return results

    def _stage(self, decisions: Sequence[Decision]) -> list[StepResult]:
        runs = [episode.run for episode in self.episodes]
        records = advance_together(runs, decisions)
        splits = self.episodes[0].judged_splits  # The same for all: they stand at the same place.
        right = runs[0].learner.accuracies_of_all(splits) if splits else [{} for _ in runs]
        return [episode.judge(record, answers) for episode, record, answers in zip(self.episodes, records, right, strict=True)]


class ContinualTuningEnv(gymnasium.Env[Observation, Observation]):
    """One proxy, tuned through case after case.

    Observation: what the configured architecture reads, float32 vector. Action: one logit per source slot.
    Reward: `controller.reward.kind`; the one of the last step of an episode is known in full when the step returns.
    `info` of the last step holds `score` (J), `accuracies`, `replay_share` (mean), `case`, `num_tokens`, `num_validation_tokens` and `flops`.
    """

    def __init__(self, config: Config, base_folder: str, cases: Sequence[Case]) -> None:
        """Args: `cases` to choose from with `select_case`; at first the first."""
        self.stages = ProxyStages(config, base_folder, cases, 1)
        self.observation_space, self.action_space = self.stages.observation_space, self.stages.action_space

    @property
    def run(self) -> ContinualRun:
        """The proxy's run of the current episode."""
        return self.stages.episodes[0].run

    def select_case(self, index: int) -> None:
        """The next `reset` starts case `index` modulo their number; without it the same case comes again."""
        self.stages.case_index = index

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """A fresh proxy at the first boundary of the selected case. `seed` changes nothing: a case has its own."""
        super().reset(seed=seed)
        (observation,) = self.stages.reset()
        return observation, {"case": self.stages.episodes[0].case.name}

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Tunes with the action's mixture until the next decision."""
        assert self.stages.episodes, "call reset before step"
        ((observation, reward, done, info),) = self.stages.step([action])
        return observation, reward, done, False, info


class ParallelTuningEnv(gymnasium.vector.VectorEnv[Observation, Observation, NDArray[Any]]):
    """`num_envs` proxies, tuned side by side through the same case; they begin and end together.

    As `ContinualTuningEnv` in all else. Because the proxies are one batched model, an operation costs little more than for one of them
    where a proxy is too small to keep the processor, or a GPU, busy.
    """

    def __init__(self, config: Config, base_folder: str, cases: Sequence[Case], num_envs: int) -> None:
        """Args: `cases` to choose from with `select_case`; at first the first."""
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.stages = ProxyStages(config, base_folder, cases, num_envs)
        self.single_observation_space, self.single_action_space = self.stages.observation_space, self.stages.action_space
        self.observation_space, self.action_space = (
            batch_space(space, num_envs) for space in (self.stages.observation_space, self.stages.action_space)
        )
        self.done = False

    def select_case(self, index: int) -> None:
        """The next `reset` starts case `index` modulo their number; without it the same case comes again."""
        self.stages.case_index = index

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Fresh proxies at the first boundary of the selected case, `[num_envs, size]`. `seed` changes nothing: a case has its own."""
        observations, self.done = self.stages.reset(), False
        return np.stack(observations), {}

    def step(self, actions: Observation) -> tuple[Observation, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Tunes each with its action's mixture until the next decision; after the last stage, the next call resets instead."""
        never = np.zeros(self.num_envs, dtype=np.bool_)
        if self.done:
            return self.reset()[0], np.zeros(self.num_envs), never, never, {}
        observations, rewards, done, infos = zip(*self.stages.step(list(actions)), strict=True)
        self.done = done[0]
        info: dict[str, Any] = {}
        for index, one in enumerate(infos):
            info = self._add_info(info, one, index)
        return np.stack(observations), np.array(rewards), np.array(done), never, info
