"""The wire format: what may be asked of the controller service and what it answers.

    StageBoundary → DecisionRequest → JSON → DecisionRequest → StageBoundary
    Decision → DecisionResponse → JSON → DecisionResponse → Decision

Both ends use these models, so neither can drift. A later task cannot be expressed: there is no field for it.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from proxymix.types import Decision, Role, SourceReading, StageBoundary

MAX_LOSS = 1e6
"""Nats per answer token; far above any real loss, and its square is still a comfortable float."""

Loss = Annotated[float, Field(ge=0, le=MAX_LOSS, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=128)]
RequestId = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(le=1_000_000)]


class WireModel(BaseModel):
    """Unknown keys are refused, and so are near misses: "0.4" is no number and true is no 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class SourceReadingModel(WireModel):
    """One visible source."""

    name: Name
    role: Role
    """`current`: the task being tuned on. `past`: an earlier task. `anchor`: a behaviour of the base model to protect."""
    reference_loss: Loss | None = Field(default=None, validate_default=True)
    """Nats per answer token at the end of the source's own task (anchor: before tuning began); absent for the current task."""
    losses: list[Loss] = Field(min_length=1, max_length=10_000)
    """Raw validation losses, nats per answer token, one per decision since the source became visible; the last is now. Where there was no
    new reading the one before is repeated."""
    age: Count = Field(default=0, ge=0)
    """Stages since the source was last read, less than the number of losses; 0: just now, the last loss is new."""
    interval: Count = Field(default=1, ge=1)
    """Stages between the last two readings; 1 where every boundary reads."""

    @field_validator("age")
    @classmethod
    def _below_number_of_losses(cls, age: int, info: ValidationInfo) -> int:
        num_losses = len(info.data.get("losses", ()))
        if num_losses and age >= num_losses:
            raise ValueError(f"must be less than the number of losses, got age {age} and {num_losses} losses")
        return age

    @field_validator("reference_loss")
    @classmethod
    def _matches_role(cls, reference_loss: float | None, info: ValidationInfo) -> float | None:
        role = info.data.get("role")
        if role == "current" and reference_loss is not None:
            raise ValueError("must be absent for the current source: its own task is not over")
        if role in ("anchor", "past") and reference_loss is None:
            raise ValueError(f"is required for a source of role {role!r}")
        return reference_loss


class DecisionRequest(WireModel):
    """A stage boundary, and the caller's name for it."""

    request_id: RequestId
    """The caller's own, returned unchanged; a retry repeats it."""
    task_index: Count = Field(ge=0)
    """0-based position of the current task in the sequence."""
    stage_index: Count = Field(ge=0)
    """0-based stage within the task."""
    num_stages: Count = Field(ge=1)
    """Stages per task; greater than stage_index."""
    sources: list[SourceReadingModel] = Field(min_length=1)
    """Every visible source, names unique, exactly one of role `current`."""

    @field_validator("num_stages")
    @classmethod
    def _above_stage_index(cls, num_stages: int, info: ValidationInfo) -> int:
        stage_index = info.data.get("stage_index", -1)
        if stage_index >= num_stages:
            raise ValueError(f"must be greater than stage_index, got stage_index {stage_index} and num_stages {num_stages}")
        return num_stages

    @field_validator("sources")
    @classmethod
    def _one_current_and_unique(cls, sources: list[SourceReadingModel]) -> list[SourceReadingModel]:
        num_current = sum(source.role == "current" for source in sources)
        if num_current != 1:
            raise ValueError(f"exactly one source must have role 'current', got {num_current}")
        seen: set[str] = set()
        for name in (source.name for source in sources):
            if name in seen:
                raise ValueError(f"names must be unique, got {name!r} twice")
            seen.add(name)
        return sources

    @classmethod
    def from_boundary(cls, boundary: StageBoundary, request_id: str) -> DecisionRequest:
        """The request that asks for a decision at `boundary`.

        Raises:
            pydantic.ValidationError: the boundary breaks a rule of the wire format, e.g. a loss is not finite.
        """
        sources = [
            SourceReadingModel(
                name=reading.name,
                role=reading.role,
                reference_loss=reading.reference_loss,
                losses=list(reading.losses),
                age=reading.age,
                interval=reading.interval,
            )
            for reading in boundary.sources
        ]
        return cls(
            request_id=request_id,
            task_index=boundary.task_index,
            stage_index=boundary.stage_index,
            num_stages=boundary.num_stages,
            sources=sources,
        )

    def to_boundary(self) -> StageBoundary:
        """What the controller is shown: everything but the request's name."""
        readings = tuple(
            SourceReading(source.name, source.role, tuple(source.losses), source.reference_loss, source.age, source.interval)
            for source in self.sources
        )
        return StageBoundary(task_index=self.task_index, stage_index=self.stage_index, num_stages=self.num_stages, sources=readings)


class ControllerRef(WireModel):
    """Which controller it was."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the frozen weights: same hash, same decisions."""


class DecisionResponse(WireModel):
    """The mixture of the next stage."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    """Share of each visible source; sums to 1."""
    replay_share: float = Field(ge=0, le=1, allow_inf_nan=False)
    """Mass not on the current task, 1 − its weight."""
    controller: ControllerRef
    request_id: RequestId

    @field_validator("weights")
    @classmethod
    def _sums_to_one(cls, weights: dict[str, float]) -> dict[str, float]:
        total = math.fsum(weights.values())
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"must sum to 1, got {total}")
        return weights

    @classmethod
    def from_decision(cls, decision: Decision, boundary: StageBoundary, request_id: str) -> DecisionResponse:
        """The answer that carries `decision`.

        Raises:
            ValueError: its weights are no mixture over the visible sources of `boundary`, or it has no hash.
        """
        weights = {name: float(weight) for name, weight in decision.weights.items()}
        _must_cover(weights, boundary)
        return cls(
            weights=weights,
            replay_share=max(0.0, 1.0 - weights[boundary.current.name]),  # A weight may exceed 1 by rounding.
            controller=ControllerRef(name=decision.controller, sha256=decision.sha256 or ""),
            request_id=request_id,
        )

    def to_decision(self, boundary: StageBoundary) -> Decision:
        """What the client hands on, weights in the order of `boundary`.

        Raises:
            ValueError: the weights name other sources than the visible ones.
        """
        _must_cover(self.weights, boundary)
        weights = {name: self.weights[name] for name in boundary.names}
        return Decision(weights=weights, controller=self.controller.name, sha256=self.controller.sha256)


class SimulatedDecision(WireModel):
    """The mixture at one boundary of a trajectory."""

    task_index: int
    stage_index: int
    weights: dict[str, float]
    """Share of each source that was visible then; sums to 1."""
    replay_share: float
    """Mass not on the task that was current then."""


class SimulationResponse(WireModel):
    """What the controller would have decided all along."""

    decisions: list[SimulatedDecision]
    """One per boundary, in order; the last is what POST /v1/decisions answers to the same body."""
    controller: ControllerRef
    request_id: RequestId


class ControllerSummary(WireModel):
    """One line of the catalogue."""

    name: str
    version: str
    sha256: str
    is_default: bool
    """Whether it answers where only its name is given."""
    max_sources: int | None
    """Most sources it can weigh; null: any number."""


class ControllerList(WireModel):
    """What the service answers for."""

    default: str
    """`name@version` of the one that answers where no name is given."""
    controllers: list[ControllerSummary]
    reload_error: str | None = None
    """Why the last config update was not taken, and the controllers of before still answer; null when it was."""


def _must_cover(weights: dict[str, float], boundary: StageBoundary) -> None:
    if set(weights) != set(boundary.names):
        raise ValueError(f"weights must name exactly the visible sources {sorted(boundary.names)}, got {sorted(weights)}")


class FieldError(WireModel):
    """One thing wrong with the request."""

    field: str
    """Path in the body, `sources.0.losses.2`."""
    message: str


class ErrorResponse(WireModel):
    """Every answer that is not 200, as application/problem+json (RFC 9457)."""

    title: str
    status: int
    detail: str
    """What to do about it, in a sentence."""
    errors: list[FieldError] = Field(default_factory=list)
    """422 only: the first faults found."""
