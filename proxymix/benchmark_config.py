"""The part of a config that says what stands in the benchmark's table, and on what the rivals' numbers are chosen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from proxymix.tuning_config import Strict

RANDOM_SHARES = (5, 10, 20, 30, 40, 50, 70)
CHOSEN = ("random", "proportional", "loss_slope", "grad_sim", "inscl")
"""Rules with a share; each stands in the table with the share that was best for it on the proxy."""
_NUMBER = r"\d+(\.\d+)?"
_WORDS = "proxymix|no_replay|random_realised|ramp_chosen|saturation|schedule_mean|untrained|shuffled"
_ROW = rf"^({_WORDS}|({'|'.join((*CHOSEN, 'random_examples', 'random_tokens'))})_{_NUMBER}|({'|'.join(CHOSEN)})_chosen|(ramp|saturation)_{_NUMBER})$"
METHODS = (
    *("proxymix", "no_replay", *(f"random_{share}" for share in RANDOM_SHARES), *(f"{rule}_chosen" for rule in CHOSEN), "random_realised"),
    *("random_examples_30", "random_tokens_30", "ramp_chosen", "saturation", "schedule_mean", "untrained", "shuffled"),
)


class ChoiceConfig(Strict):
    """What a careful user would choose on the proxy, at a controller's expense: the best share of every rule, and the ramp's constant."""

    worlds: list[str] = Field(default_factory=lambda: ["validation-0", "validation-1"], min_length=1)
    """Builtin worlds that are neither trained on nor in the table."""
    num_cases: int = Field(default=6, ge=1)
    """Random orders, drawn like the curriculum's."""
    shares: list[Annotated[float, Field(ge=0, le=100)]] = Field(default_factory=lambda: [10.0, 20.0, 30.0, 40.0, 50.0, 60.0], min_length=1)
    """Percent."""
    constants: list[Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: [3.0, 5.0, 10.0, 20.0], min_length=1)
    """c of the ramp n/(n + c)."""


class BenchmarkConfig(Strict):
    """`jobs.benchmark`: every method on every sequence and seed, on the target."""

    sequences: list[str] = Field(default_factory=lambda: ["sharp_shift", "style", "safety_first", "long", "related", "very_long"], min_length=1)
    """Named builtin sequences."""
    world: str = "heldout-0"
    """Where the table is made; no controller or choice has seen it."""
    num_seeds: int = Field(default=8, ge=1)
    """Data streams per sequence."""
    methods: list[Annotated[str, Field(pattern=_ROW)]] = Field(default_factory=lambda: list(METHODS), min_length=1)
    """Rows, as docs/rivals.md lists them; `proxymix` is the mean of the controllers. Each controller's own row stands there in any case."""
    num_controllers: int = Field(default=3, ge=1)
    """Trainings with seeds 0, 1, …; each is a row `proxymix_seed<k>`."""
    choice: ChoiceConfig = ChoiceConfig()

    @model_validator(mode="after")
    def _held_out(self) -> BenchmarkConfig:
        if self.world in self.choice.worlds:
            raise ValueError(f"choice.worlds must not hold the table's world, got {self.world} in both")
        if seen := [world for world in (self.world, *self.choice.worlds) if world.startswith("base-")]:
            raise ValueError(f"world and choice.worlds must be none that base models are pre-trained on, got {', '.join(seen)}")
        return self
