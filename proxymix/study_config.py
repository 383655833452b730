"""The part of a config that says between which models, and at which learning rates, mirroring is studied."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxymix.tuning_config import Strict

Preset = Literal["nano", "micro", "mini", "small"]
PAIRS: tuple[tuple[Preset, Preset], ...] = (("nano", "micro"), ("nano", "small"), ("micro", "small"))


class MirroringStudyConfig(Strict):
    """`jobs.mirroring_study`: pilots of several sizes at several learning rates, each run once and shared by all pairs it is in."""

    pairs: list[tuple[Preset, Preset]] = Field(default=list(PAIRS), min_length=1)
    """Presets of (proxy, target)."""
    rates: list[Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: [0.5, 1.0, 2.0], min_length=1)
    """Multiples of `tuning.learning_rate`, the same for both models of a pair."""
    num_sequences: int = Field(default=8, ge=1)
    """Task orders, drawn like the curriculum's."""
    num_seeds: int = Field(default=2, ge=1)
    """Data streams per sequence; two or more give the ceiling."""
    worlds: list[str] = Field(default_factory=lambda: ["validation-0", "validation-1"], min_length=1)
    """Builtin worlds that the sequences come from; none that a table is made in."""

    @model_validator(mode="after")
    def _scales(self) -> MirroringStudyConfig:
        if equal := [pair[0] for pair in self.pairs if pair[0] == pair[1]]:
            raise ValueError(f"pairs must be of two sizes, got {equal[0]} twice")
        for name, values in (("pairs", self.pairs), ("rates", self.rates)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must be unique, got {values}")
        return self

    @property
    def sizes(self) -> list[Preset]:
        """Every preset once, in the order of the pairs."""
        return list(dict.fromkeys(size for pair in self.pairs for size in pair))
