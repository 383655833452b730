"""The part of a config that says what is left out of the controller, one thing at a time, and on what each variant is compared.

Rows mean what `proxymix.ablation_rows` says. `proxymix.config` puts it in its place.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field, model_validator

from proxymix.feature_groups import FeatureGroup
from proxymix.tuning_config import Strict

FULL = "full"
"""What every row is compared with."""
_GROUPS = "|".join(get_args(FeatureGroup))
_NUMBER = r"[1-9]\d*"
_ROW = rf"^(without_({_GROUPS})|no_safety_reward|mean_schedule|mean_share|flat|cadence_{_NUMBER}|noisy_{_NUMBER}|proxy_(nano|micro|mini|small))$"
ROWS = (
    *("without_trend", "without_normalisation", "no_safety_reward", "mean_schedule", "mean_share", "flat"),
    *(f"without_{group}" for group in get_args(FeatureGroup) if group not in ("trend", "normalisation")),
    *("cadence_2", "cadence_4", "noisy_10", "noisy_30", "proxy_micro", "proxy_mini"),
)


class AblationConfig(Strict):
    """`jobs.ablate`: the full controller against variants of it, each learnt like it (`controller`) and used on the same cases of the target."""

    rows: list[Annotated[str, Field(pattern=_ROW)]] = Field(default_factory=lambda: list(ROWS), min_length=1)
    """`without_<feature group>`, `no_safety_reward`, `flat`, `cadence_<stages>`, `proxy_<preset>`: learnt anew. `mean_schedule`, `mean_share`:
    what the full controller does on average on the proxy. `noisy_<percent>`: noise on what it is shown, in use alone."""
    world: str = "heldout-1"
    """Builtin world that the cases' random orders come from; none that a controller is trained in."""
    num_cases: int = Field(default=24, ge=1)
    """Paired cases."""
    num_controllers: int = Field(default=2, ge=1)
    """Trainings per variant, with seeds 0, 1, …; a case's result is their mean."""
    lengths: list[Annotated[int, Field(ge=2)]] = Field(default_factory=lambda: [8, 12])
    """Sequences of so many tasks, without retraining; compared with `rivals`."""
    num_long_cases: int = Field(default=12, ge=1)
    """Paired cases of each length."""
    rivals: list[Annotated[str, Field(pattern=r"^(random|ramp)_\d+(\.\d+)?$")]] = Field(
        default_factory=lambda: ["random_30", "random_50", "ramp_10"], min_length=1
    )
    """Rules that stand beside it."""

    @model_validator(mode="after")
    def _once(self) -> AblationConfig:
        for name, values in (("rows", self.rows), ("lengths", self.lengths), ("rivals", self.rivals)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must be unique, got {values}")
        return self
