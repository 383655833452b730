"""The part of a config that says what stands in the benchmark's table, and on what the rivals' numbers are chosen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxymix.tuning_config import SourceConfig, SourceSpec, Strict

RANDOM_SHARES = (5, 10, 20, 30, 40, 50, 70)
CHOSEN = ("random", "proportional", "loss_slope", "grad_sim", "inscl")
"""Rules with a share; each stands in the table with the share that was best for it on the proxy."""
_NUMBER = r"\d+(\.\d+)?"
_WORDS = "proxymix|no_replay|ramp_chosen|saturation|schedule_mean|schedule_tuned|random_policy|doremi|olora|untrained|shuffled"
_SHARED = "|".join((*CHOSEN, "random_examples", "random_tokens"))
_ROW = rf"^({_WORDS}|({_SHARED})_{_NUMBER}|({'|'.join(CHOSEN)})_(chosen|realised)|(ramp|saturation)_{_NUMBER})$"
METHODS = (
    *(
        "proxymix",
        "no_replay",
        *(f"random_{share}" for share in RANDOM_SHARES),
        *(f"{rule}_{how}" for how in ("chosen", "realised") for rule in CHOSEN),
    ),
    *("random_examples_30", "random_tokens_30", "ramp_chosen", "saturation", "doremi", "olora"),
    *("schedule_mean", "schedule_tuned", "random_policy", "untrained", "shuffled"),
)
BUDGETED = ("schedule_tuned", "random_policy")
"""Rows that get the budget controllers are trained with; there is none where a controller is given."""
Row = Annotated[str, Field(pattern=_ROW)]
SequenceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Order = Annotated[list[SourceSpec], Field(min_length=2)]


class ChoiceConfig(Strict):
    """What a careful user would choose on the proxy, at a controller's expense: the best share of every rule, and the ramp's constant."""

    worlds: list[str] = Field(default_factory=lambda: ["validation-0", "validation-1"], min_length=1)
    """Builtin worlds that are neither trained on nor in the table; ignored when `pool` is given."""
    pool: Annotated[list[SourceSpec], Field(min_length=2)] | None = None
    """Sources of your own, none of them in the table; the controller may practise on them too. As many as `controller.curriculum.num_tasks`."""
    num_cases: int = Field(default=6, ge=1)
    """Random orders, drawn like the curriculum's."""
    shares: list[Annotated[float, Field(ge=0, le=100)]] = Field(default_factory=lambda: [10.0 * tens for tens in range(1, 9)], min_length=1)
    """Percent."""
    constants: list[Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: [1.0, 2.0, 3.0, 5.0, 10.0, 20.0], min_length=1)
    """c of the ramp n/(n + c)."""


class BenchmarkConfig(Strict):
    """`jobs.benchmark`: every method on every sequence and seed, on the target."""

    sequences: list[str] | dict[SequenceName, Order] = Field(
        default_factory=lambda: ["sharp_shift", "style", "safety_first", "long", "related", "very_long"], min_length=1
    )
    """Named builtin sequences; or orders of sources of your own, each under the name it gets in the table."""
    world: str = "heldout-0"
    """Where the table of named sequences is made; no controller or choice has seen it."""
    num_seeds: int = Field(default=8, ge=1)
    """Data streams per sequence."""
    methods: list[Row] | None = Field(default=None, min_length=1)
    """Rows, as docs/rivals.md lists them; `proxymix` is the mean of the controllers, or that of `controller.path`. Each controller learnt has a row
    of its own in any case. None: all, but for those that get a training's budget where a controller is given."""
    num_controllers: int = Field(default=3, ge=1)
    """Trainings with seeds 0, 1, …; each is a row `proxymix_seed<k>`. Ignored where a controller is given."""
    choice: ChoiceConfig = ChoiceConfig()
    same_sequences: list[str] | None = None
    """Sequences with a row `proxymix_same`: the paper's protocol, a controller trained on the proxy on this very sequence. None: the first two,
    none where a controller is given."""
    oracle_sequences: list[str] | None = None
    """Sequences with a row `oracle`: the same learner with the target in the proxy's place. None: the first two, none where a controller is given."""
    oracle_episodes: int | None = Field(default=None, ge=1)
    """Target runs that an oracle learns from. None: `controller.episodes`."""
    headroom_cases: int = Field(default=2, ge=0)
    """Cases with a row `headroom`, the first seed of every sequence first: the best schedule that a direct search on the target finds."""
    headroom_evaluations: int = Field(default=160, ge=1)
    """Target runs of that search, a case; as many whole populations of `controller.episodes_per_iteration` as fit."""
    more_targets: list[Literal["nano", "micro", "mini", "small"]] = Field(default_factory=list)
    """Presets that get a table of their own, `benchmark/<preset>/`, beside `target.model`'s; the same controllers and choices, no oracles."""

    @property
    def orders(self) -> dict[str, list[SourceConfig]]:
        """The sequences that are orders of sources; empty where they are builtin names."""
        return self.sequences if isinstance(self.sequences, dict) else {}

    @model_validator(mode="after")
    def _of_the_table(self) -> BenchmarkConfig:
        if unknown := [name for name in [*(self.same_sequences or []), *(self.oracle_sequences or [])] if name not in self.sequences]:
            raise ValueError(f"same_sequences and oracle_sequences must be among sequences, got {', '.join(unknown)}")
        return self

    @model_validator(mode="after")
    def _held_out(self) -> BenchmarkConfig:
        if self.world in self.choice.worlds:
            raise ValueError(f"choice.worlds must not hold the table's world, got {self.world} in both")
        if seen := [world for world in (self.world, *self.choice.worlds) if world.startswith("base-")]:
            raise ValueError(f"world and choice.worlds must be none that base models are pre-trained on, got {', '.join(seen)}")
        return self
