"""The part of a config that says what is learnt, from what, and for which reward. `proxymix.config` puts it in its place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from proxymix.errors import UserError
from proxymix.feature_groups import FLAT_GROUPS, FeatureGroup
from proxymix.tuning_config import SourceSpec, Strict


class RewardConfig(Strict):
    """What the controller is learnt for."""

    kind: Literal["paired", "paper"] = "paired"
    """`paired`: at the end, J minus the mean J of reference runs of the same case, over `paired_scale`. `paper`: Eq. 6 at every stage."""
    lambda_: float = Field(default=1.0, ge=0, alias="lambda")
    """Eq. 6, weight of earlier sources' loss rises."""
    beta: float = Field(default=0.5, ge=0)
    """Eq. 6, weight of the safety score."""
    gamma: float = Field(default=1.0, ge=0)
    """Eq. 7, weight of over-refusal."""
    safety: bool = True
    """Whether safety is rewarded: the safety anchor counts in the J of the paired reward; Eq. 6 has its safety term. False: an ablation."""
    paired_scale: float = Field(default=0.02, gt=0)
    """Accuracy difference worth a reward of 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, serialize_by_alias=True)


class PPOConfig(Strict):
    """RLlib PPO. Defaults suit the equivariant controller and the paired reward (docs/decisions)."""

    learning_rate: float | None = Field(default=None, gt=0)
    """None: 0.04 for the equivariant controller's few gains, 3e-4 (the paper's) for the flat MLP."""
    num_epochs: int = Field(default=10, ge=1)
    minibatch_size: int | None = Field(default=None, ge=2)
    """None: the full batch."""
    clip: float = Field(default=0.2, gt=0)
    discount: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    entropy_coeff: float = Field(default=0.0, ge=0)
    value_coeff: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)


class CurriculumConfig(Strict):
    """The cases a controller is trained on; none is ever in a table."""

    worlds: list[str] = Field(default_factory=lambda: ["train-0", "train-1", "train-2"])
    """Builtin worlds that task orders are drawn from; ignored when `pool` is given."""
    pool: list[SourceSpec] | None = None
    """Sources that task orders are drawn from, for data of your own."""
    num_tasks: Annotated[int, Field(ge=2)] | tuple[Annotated[int, Field(ge=2)], int] = 5
    """Tasks per episode; or the fewest and the most, each case drawing its own."""
    num_cases: int = Field(default=20, ge=1)
    """Distinct (order, lengths, seed) cases; iteration i trains on case i mod num_cases."""
    length_range: tuple[float, float] = (0.67, 1.5)
    """Each task's steps_per_stage is multiplied by a factor drawn log-uniformly from this range."""

    @model_validator(mode="after")
    def _drawable(self) -> CurriculumConfig:
        low, high = self.length_range
        if not 0 < low <= high:
            raise ValueError(f"length_range must be two positive factors, the smaller first, got {list(self.length_range)}")
        if isinstance(self.num_tasks, tuple) and self.num_tasks[0] > self.num_tasks[1]:
            raise ValueError(f"num_tasks must be a number or the fewest and the most, the smaller first, got {list(self.num_tasks)}")
        if self.pool is not None and self.most_tasks > len(self.pool):
            raise ValueError(f"num_tasks must be at most the number of sources in pool, got {self.most_tasks} and {len(self.pool)}")
        return self

    @property
    def fewest_tasks(self) -> int:
        """Of the shortest episode."""
        return self.num_tasks if isinstance(self.num_tasks, int) else self.num_tasks[0]

    @property
    def most_tasks(self) -> int:
        """Of the longest episode."""
        return self.num_tasks if isinstance(self.num_tasks, int) else self.num_tasks[1]


class SweptConfig(Strict):
    """The sweep that found a controller's settings; its `best.yaml` says so, and tables count it among what the controller cost."""

    id: str
    """Of the sweep's results."""
    flops: int = Field(ge=0)
    """Operations of its trials and of the reference runs that were made for them alone."""
    episodes: int = Field(ge=0)
    """Proxy runs of its trials."""


class ControllerConfig(Strict):
    """The policy, how it is learnt, and on what."""

    path: str | None = None
    """Folder of a frozen controller to use instead of learning one; `shipped`: the one that comes with the project."""
    architecture: Literal["equivariant", "flat"] = "equivariant"
    """`equivariant`: one shared scorer for any number of sources. `flat`: the paper's MLP over a fixed maximum."""
    hidden_units: int = Field(default=0, ge=0)
    """equivariant: tanh units beside the linear features (0: linear). flat: width of both hidden layers (0: the paper's 256)."""
    max_sources: int = Field(default=12, ge=2)
    """Slots of the observation in training (and for ever, when flat): tasks plus anchors."""
    without: list[FeatureGroup] = Field(default_factory=list)
    """Groups of features the policy does without, for ablations (`proxymix.feature_groups`); the card of the frozen controller says so."""
    decide_every: int = Field(default=1, ge=1)
    """Stages that a decision lasts; every task begins with one."""
    exploration: Literal["per_episode", "per_decision"] = "per_episode"
    """Whether exploration noise is drawn once an episode (state-dependent) or afresh at each decision (the paper)."""
    initial_sigma: float = Field(default=0.6, gt=0)
    """Initial standard deviation of the exploration noise."""
    seed: int | None = Field(default=None, ge=0)
    """Of the training alone: its orders, its noise, its first parameters. None: the run's seed, which the data are drawn with too."""
    episodes: int = Field(default=320, ge=1)
    """Proxy runs to learn from."""
    episodes_per_iteration: int = Field(default=16, ge=2)
    """All on one case, so that PPO's standardisation of advantages compares like with like."""
    num_env_runners: int = Field(default=2, ge=0)
    """Ray actors that run proxy episodes; 0: in the trainer's own process. More than an iteration has groups are not started, and the job says so.
    A run may go on with another number."""
    proxies_side_by_side: int = Field(default=8, ge=1)
    """Most proxies that one of them tunes at a time as one batched model (docs/performance.md)."""
    average_last: float = Field(default=1 / 3, gt=0, le=1)
    """The frozen policy is the mean of the parameters over this last share of the iterations."""
    swept: SweptConfig | None = None
    """Which sweep found these settings. Changes no result, but what it cost. None: none did."""
    ppo: PPOConfig = PPOConfig()
    reward: RewardConfig = RewardConfig()
    curriculum: CurriculumConfig = CurriculumConfig()

    @model_validator(mode="after")
    def _has_what_it_lacks(self) -> ControllerConfig:
        if unknown := sorted(set(self.without) - set(FLAT_GROUPS)) if self.architecture == "flat" else []:
            raise ValueError(f"without must be of {', '.join(FLAT_GROUPS)} for a flat controller, got {', '.join(unknown)}")
        return self

    def must_be_learnt(self, by: str) -> None:
        """Raises: UserError: a controller is given, and the job `by` learns its own."""
        if self.path is not None:
            raise UserError(f"controller.path: must be null for {by}, which learns its controllers, got {self.path!r}")

    @property
    def learning_rate(self) -> float:
        """PPO's, as given or as suits the architecture."""
        return self.ppo.learning_rate or {"equivariant": 0.04, "flat": 3e-4}[self.architecture]
