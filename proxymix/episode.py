"""One proxy run as a reinforcement-learning episode: what the policy sees of it, what an action means in it, what it is rewarded for.

boundary → observation          action → mixture → Decision          stage record, right answers → reward, info
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proxymix.cases import Case
from proxymix.continual import ContinualRun, mean_accuracies
from proxymix.controller_config import RewardConfig
from proxymix.controllers.policy import Policy
from proxymix.data.encoding import EncodedSource, EncodedSplit
from proxymix.reward import final_score, paired_reward, paper_reward, safety_score
from proxymix.types import Decision, StageRecord

Observation = NDArray[np.float32]
StepResult = tuple[Observation, float, bool, dict[str, Any]]
"""Observation, reward, whether the episode is over, and its info."""


class Episode:
    """A run of `case` from its first boundary to its last."""

    def __init__(self, reward: RewardConfig, policy: Policy, case: Case, run: ContinualRun) -> None:
        """Args: `policy` says how boundaries are observed and logits become mixtures; its parameters do not matter."""
        self.reward, self.policy, self.case, self.run = reward, policy, case, run
        self.records: list[StageRecord] = []

    def observation(self) -> Observation:
        """Of the boundary where the run stands."""
        return np.clip(self.policy.observe(self.run.observe()), -100.0, 100.0).astype(np.float32)

    def decision(self, action: NDArray[np.float32]) -> Decision:
        """The mixture that an action, one logit per source slot, means here."""
        boundary = self.run.observe()
        weights = self.policy.mixture(np.asarray(action, dtype=np.float64), boundary)
        return Decision(dict(zip(boundary.names, weights.tolist(), strict=True)), "training")

    @property
    def judged_splits(self) -> dict[str, EncodedSplit]:
        """What must be answered to judge the stage just tuned: everything at the end, else what the reward of each stage wants."""
        if self.run.done:
            return self.run.validation_splits
        anchor = self.run.safety_anchor if self.reward.kind == "paper" and self.reward.safety else None
        return {anchor.name: anchor.validation} if anchor else {}

    def judge(self, record: StageRecord, right: Mapping[str, Tensor]) -> StepResult:
        """What the stage of `record` led to; `right` says which rows of `judged_splits` are answered right."""
        self.records.append(record)
        self.run.count_reading(self.judged_splits)
        info = self._final_info(mean_accuracies(right)) if self.run.done else {}
        return self.observation(), self._reward(record, right, info), self.run.done, info

    def _reward(self, record: StageRecord, right: Mapping[str, Tensor], info: dict[str, Any]) -> float:
        if self.reward.kind == "paper":
            anchor = self.run.safety_anchor if self.reward.safety else None
            safety = None if anchor is None else validation_safety(anchor, right[anchor.name], self.reward.gamma)
            trained = record.boundary.current.name
            return paper_reward(self.run.observe(), trained, lambda_=self.reward.lambda_, beta=self.reward.beta, safety=safety)
        if not self.run.done:
            return 0.0
        return paired_reward(info["score"], self.case.reference_scores or (0.0,), self.reward.paired_scale)

    def _final_info(self, accuracies: dict[str, float]) -> dict[str, Any]:
        return {
            "score": final_score(accuracies, unrewarded(self.reward, self.run)),
            "accuracies": accuracies,
            "replay_share": float(np.mean([record.replay_share for record in self.records])),
            "num_tokens": sum(record.num_tokens for record in self.records),
            "num_validation_tokens": sum(record.num_validation_tokens for record in self.records),
            "flops": self.run.flops,
            "case": self.case.name,
        }


def unrewarded(reward: RewardConfig, run: ContinualRun) -> str | None:
    """Name of the source that does not count in J; None: all do."""
    return run.safety_anchor.name if run.safety_anchor and not reward.safety else None


def validation_safety(anchor: EncodedSource, right: Tensor, gamma: float) -> float:
    """SS (Eq. 7), teacher-forced: `right` says which of the anchor's validation rows are answered right, bool `[num_rows]`."""
    assert anchor.harmful is not None
    rows = right.double()
    return safety_score(float(rows[anchor.harmful].mean()), float(rows[~anchor.harmful].mean()), gamma)
