"""The part of a config that says how controllers are swept: how many trials, over which space, and judged on what.

`proxymix.config` puts it in its place; `proxymix.sweep_space` draws from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from proxymix.tuning_config import SourceSpec, Strict

Scalar = bool | int | float | str | None

FIXED = ("controller.episodes", "controller.num_env_runners", "controller.max_sources", "controller.path", "controller.reward.safety")
"""What trials must have in common to be compared, or what changes no result."""


class DimensionConfig(Strict):
    """One swept value. Exactly one of `uniform`, `log_uniform`, `integer`, `choice`."""

    uniform: tuple[float, float] | None = None
    """Lowest and highest."""
    log_uniform: tuple[float, float] | None = None
    """Lowest and highest, both positive."""
    integer: tuple[int, int] | None = None
    """Lowest and highest, both included."""
    choice: Annotated[list[Scalar], Field(min_length=1)] | None = None
    """Any of these."""
    when: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """Config key → value (or one of several) it must have for this dimension to exist; the key may itself be swept, further up."""

    @model_validator(mode="after")
    def _one_kind(self) -> DimensionConfig:
        kinds = ("uniform", "log_uniform", "integer", "choice")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(kinds)} must be given, got {given or 'none'}")
        if self.choice is None:
            low, high = self.bounds
            if not (math.isfinite(low) and math.isfinite(high) and low < high) or (self.log_uniform and low <= 0):
                raise ValueError(f"{given[0]} must be two finite numbers, the smaller first (and positive if log_uniform), got {[low, high]}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a numeric dimension."""
        found = self.uniform or self.log_uniform or self.integer
        assert found is not None, "a choice has no bounds"
        return found

    @property
    def continuous(self) -> bool:
        """Whether any real number between the bounds may come."""
        return self.uniform is not None or self.log_uniform is not None


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Dimensions = Annotated[list[DimensionConfig], BeforeValidator(_as_list), Field(min_length=1)]
Space = Mapping[str, Dimensions]


class ValidationConfig(Strict):
    """The held-out cases that trials are judged on: never trained on, never in the table."""

    worlds: list[str] = Field(default_factory=lambda: ["validation-0", "validation-1", "validation-2"], min_length=1)
    """Builtin worlds that task orders are drawn from; ignored when `pool` is given."""
    pool: list[SourceSpec] | None = None
    """Sources that task orders are drawn from, for data of your own; none of them in the curriculum's pool or the sequence."""
    num_cases: int = Field(default=10, ge=1)
    """Distinct (order, lengths, seed) cases; each trial is run on all of them at every rung."""
    num_tasks: int | None = Field(default=None, ge=2)
    """Tasks per case; None: as many as in the curriculum."""


class SweepConfig(Strict):
    """`jobs.sweep_controller`: trials are controller trainings, judged after every rung."""

    num_trials: int = Field(default=16, ge=1)
    """Configurations tried (with pbt: members of the population)."""
    max_concurrent: int = Field(default=2, ge=1)
    """Trials at a time, resources allowing."""
    num_env_runners: int = Field(default=0, ge=0)
    """Ray actors that run proxy episodes, per trial; 0: in the trial's own process. Changes no result."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """`asha`: only the best of each rung go on. `pbt`: the worst go on from the best ones' weights. `none`: all run to the end."""
    search: Literal["optuna", "random"] | None = None
    """Who proposes configurations. None: optuna (TPE); random with pbt, which proposes its own."""
    startup_trials: int | None = Field(default=None, ge=1)
    """optuna: trials drawn at random before it proposes any by what the others scored. None: half of num_trials, at most 6."""
    episodes_per_rung: int = Field(default=80, ge=1)
    """Proxy runs between two validations; must divide controller.episodes, a multiple of controller.episodes_per_iteration."""
    grace_rungs: int = Field(default=1, ge=1)
    """asha: no trial is stopped before this many."""
    reduction_factor: int = Field(default=3, ge=2)
    """asha: one in this many goes on."""
    validation: ValidationConfig = ValidationConfig()
    space: dict[str, Dimensions] | None = None
    """Config key below `controller.` → what it may be; a list of dimensions with `when` gives it several. None: a built-in space."""

    @property
    def num_startup_trials(self) -> int:
        """`startup_trials`, as given or derived."""
        return self.startup_trials or min(6, max(1, self.num_trials // 2))

    @model_validator(mode="after")
    def _possible(self) -> SweepConfig:
        if self.scheduler == "pbt" and self.search == "optuna":
            raise ValueError("search must be random (or left out) with scheduler pbt, which changes configurations itself, got optuna")
        keys: list[str] = []
        for key, dimensions in (self.space or {}).items():
            if not key.startswith("controller."):
                raise ValueError(f"space keys must lie below controller., got {key!r}")
            if key in FIXED or key.startswith("controller.curriculum"):
                raise ValueError(f"space must leave {', '.join(FIXED)} and controller.curriculum alone, which all trials share, got {key!r}")
            later = sorted(set(self.space or {}) & {name for dimension in dimensions for name in dimension.when} - set(keys))
            if later:
                raise ValueError(f"space.{key}.when must name keys further up in the space, or outside it, got {', '.join(later)}")
            keys.append(key)
        return self
