"""The proxy environment: Gymnasium's shell over the one stage loop. A step is one stage of real tuning, an episode one whole run.

reset: case → ContinualRun → observation          step: action → mixture → advance → observation, reward
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from proxymix.cases import Case, proxy_builder
from proxymix.config import Config
from proxymix.continual import ContinualRun
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.reward import final_score, paired_reward, paper_reward
from proxymix.types import Decision, StageBoundary, StageRecord

Observation = NDArray[np.float32]

ACTION_BOUND = 20.0
"""Logits beyond it change nothing that whole samples could show."""


class ContinualTuningEnv(gymnasium.Env[Observation, Observation]):
    """One proxy, tuned through case after case.

    Observation: what the configured architecture reads, float32 vector. Action: one logit per source slot.
    Reward: `controller.reward.kind`; the one of the last step of an episode is known in full when the step returns.
    `info` of the last step holds `score` (J), `accuracies`, `replay_share` (mean), `case`, `num_tokens` and `num_validation_tokens`.
    """

    def __init__(self, config: Config, base_folder: str, cases: Sequence[Case]) -> None:
        """Args: `cases` to choose from with `select_case`; at first the first."""
        self.config, self.cases = config, list(cases)
        controller = config.controller
        parameters = initial_parameters(controller.architecture, controller.hidden_units, controller.max_sources, np.random.default_rng(0))
        self.policy = build_policy(controller.architecture, parameters, slots=controller.max_sources)
        self.builder = proxy_builder(config, base_folder)
        size = len(self._padded(self.policy.observe(_EXAMPLE)))
        self.observation_space = gymnasium.spaces.Box(-100.0, 100.0, (size,), np.float32)
        self.action_space = gymnasium.spaces.Box(-ACTION_BOUND, ACTION_BOUND, (controller.max_sources,), np.float32)
        self.case_index = 0
        self.run: ContinualRun | None = None

    def select_case(self, index: int) -> None:
        """The next `reset` starts case `index` modulo their number; without it the same case comes again."""
        self.case_index = index % len(self.cases)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """A fresh proxy at the first boundary of the selected case. `seed` changes nothing: a case has its own."""
        super().reset(seed=seed)
        self.run = self.builder.build(self.cases[self.case_index])
        self.records: list[StageRecord] = []
        return self._observation(self.run.observe()), {"case": self.cases[self.case_index].name}

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Tunes one stage with the action's mixture."""
        run = self.run
        assert run is not None, "call reset before step"
        before = run.observe()
        weights = self.policy.mixture(np.asarray(action, dtype=np.float64), before)
        decision = Decision(dict(zip(before.names, weights.tolist(), strict=True)), "training")
        record = run.advance(decision)
        self.records.append(record)
        info = self._final_info(run) if run.done else {}
        after = run.observe()
        return self._observation(after), self._reward(record, after, info), run.done, False, info

    def _reward(self, record: StageRecord, after: StageBoundary, info: dict[str, Any]) -> float:
        reward, run = self.config.controller.reward, self.run
        assert run is not None
        if reward.kind == "paper":
            safety = run.validation_safety(reward.gamma)
            return paper_reward(after, record.boundary.current.name, lambda_=reward.lambda_, beta=reward.beta, safety=safety)
        if not run.done:
            return 0.0
        return paired_reward(info["score"], self.cases[self.case_index].reference_scores or (0.0,), reward.paired_scale)

    def _final_info(self, run: ContinualRun) -> dict[str, Any]:
        accuracies = run.validation_accuracies()
        return {
            "score": final_score(accuracies),
            "accuracies": accuracies,
            "replay_share": float(np.mean([record.replay_share for record in self.records])),
            "num_tokens": sum(record.num_tokens for record in self.records),
            "num_validation_tokens": sum(record.num_validation_tokens for record in self.records),
            "case": self.cases[self.case_index].name,
        }

    def _observation(self, boundary: StageBoundary) -> Observation:
        return self._padded(self.policy.observe(boundary))

    def _padded(self, observation: NDArray[np.float64]) -> Observation:
        return np.clip(observation, -100.0, 100.0).astype(np.float32)


def _example_boundary() -> StageBoundary:
    from proxymix.types import SourceReading

    return StageBoundary(0, 0, 1, (SourceReading("task", "current", (1.0,)),))


_EXAMPLE = _example_boundary()
