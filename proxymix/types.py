"""The few values that travel between the layers.

Example → Source → SourceReading → StageBoundary → Decision → StageRecord
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Role = Literal["anchor", "past", "current"]
Unfit = Literal["error", "drop"]
Scorer = Literal["exact_match", "choice", "numeric", "rouge_l", "unit_tests", "refusal"]


@dataclass(frozen=True)
class Example:
    """One prompt and the answer the model is tuned to give; the loss is taken on the answer alone."""

    prompt: str
    response: str
    harmful: bool | None = None
    """Safety sources only: whether the prompt should be refused. None elsewhere."""
    messages: tuple[tuple[str, str], ...] = ()
    """The prompt as (role, content) pairs, for the model's chat template; `prompt` then reads the same as lines. Empty: the prompt is plain text."""
    tests: str | None = None
    """Python statements that hold of a right program (`unit_tests`). None: the answer is no program."""


@dataclass(frozen=True)
class Source:
    """Anything examples can be drawn from: a task of the sequence or an anchor. The four splits are disjoint, except buffer ⊂ train."""

    name: str
    train: tuple[Example, ...]
    buffer: tuple[Example, ...]
    """What is kept for replay once the task is over; bounded by `tuning.buffer_size`."""
    validation: tuple[Example, ...]
    """What the controller sees the loss of."""
    test: tuple[Example, ...]
    """What nobody sees before the end."""
    scorer: Scorer = "exact_match"
    unfit: Unfit = "error"
    """What becomes of rows that a model cannot be tuned on, which its tokenizer decides (`proxymix.data.fitting`)."""


@dataclass(frozen=True)
class SourceReading:
    """What a controller may know of one visible source."""

    name: str
    role: Role
    losses: tuple[float, ...]
    """Validation losses, nats per answer token, one per decision since the source became visible; the last is now. Where there was no new
    reading the one before is repeated."""
    reference_loss: float | None = None
    """Loss at the end of the source's own task (anchor: before tuning began); None while the source is current."""
    age: int = 0
    """Stages since the source was last read; 0: just now. The last `age` losses are repeats."""
    interval: int = 1
    """Stages between the last two readings; 1 where every boundary reads."""


@dataclass(frozen=True)
class StageBoundary:
    """A decision step: all that is visible when the mixture of the next stage is chosen. A later task cannot be expressed."""

    task_index: int
    """0-based position of the current task in the sequence."""
    stage_index: int
    """0-based stage within the task."""
    num_stages: int
    """Stages per task."""
    sources: tuple[SourceReading, ...]
    """Every visible source; exactly one has role `current`."""

    @property
    def current(self) -> SourceReading:
        """The reading of the task being tuned on."""
        return next(source for source in self.sources if source.role == "current")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the visible sources, in order."""
        return tuple(source.name for source in self.sources)


@dataclass(frozen=True)
class Decision:
    """Mixture weights for the next stage and where they came from."""

    weights: Mapping[str, float]
    """Non-negative, sums to 1 over the visible sources."""
    controller: str
    """Name of what decided."""
    sha256: str | None = None
    """Hash of the frozen controller's weights; None for a rule."""
    fallback: str | None = None
    """Why the declared fallback mixture was used instead; None when the controller answered."""


class Controller(Protocol):
    """Anything that chooses a mixture at a stage boundary: the frozen policy, a baseline, the HTTP client."""

    name: str

    def decide(self, boundary: StageBoundary) -> Decision:
        """Mixture weights over the visible sources of `boundary`."""
        ...


@dataclass(frozen=True)
class StageRecord:
    """One line of `decisions.jsonl`: what was seen, what was decided, what was done."""

    request_id: str
    boundary: StageBoundary
    decision: Decision
    counts: Mapping[str, int]
    """Samples realised per visible source; their sum is steps × batch size."""
    training_loss: float
    """Mean over the stage, nats per answer token."""
    num_optimizer_steps: int
    num_tokens: int
    """Tokens that went through the forward and backward pass, padding excluded."""
    num_validation_tokens: int = 0
    """Tokens that went through the forward pass for the readings of the next boundary."""
    training_flops: int = 0
    """Operations of the stage's optimizer steps, counted from the shapes of its batches (`proxymix.cost`)."""
    validation_flops: int = 0
    """Operations of all that was read since the record before: the next boundary's readings, and at first the base's."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock by phase: `train`, `validate`, `decide`; and `cpu`, the process time of all three.

    The only field that differs between two runs of one seed.
    """

    @property
    def replay_share(self) -> float:
        """Mass not on the current task."""
        return 1.0 - float(self.decision.weights[self.boundary.current.name])
