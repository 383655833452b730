"""What trials may be, and the cases they are judged on: both are checked before anything starts.

space → draw(trial) → {"controller.ppo.clip": 0.2, …} → trial_config → Config
sweep.validation → validation_cases → Cases that share no source with training or with the table
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from proxymix.account import VALIDATION
from proxymix.cases import Case, draw_cases, sequence_tasks
from proxymix.config import Config, CurriculumConfig, SourceConfig, validated
from proxymix.errors import UserError
from proxymix.sweep_config import DimensionConfig, Space

Overrides = dict[str, Any]
"""Config key → value."""


def _dimensions(**kinds: Any) -> DimensionConfig:
    return DimensionConfig.model_validate(kinds)


_FLAT, _EQUIVARIANT = {"controller.architecture": "flat"}, {"controller.architecture": "equivariant"}
_PAPER = {"controller.reward.kind": "paper"}
_LEARNING_RATE = [_dimensions(log_uniform=(1e-4, 3e-3), when=_FLAT), _dimensions(log_uniform=(0.01, 0.15), when=_EQUIVARIANT)]

DEFAULT_SPACE: Space = {
    "controller.architecture": [_dimensions(choice=["equivariant", "flat"])],
    "controller.hidden_units": [_dimensions(choice=[0, 8], when=_EQUIVARIANT), _dimensions(choice=[64, 256], when=_FLAT)],
    "controller.exploration": [_dimensions(choice=["per_episode", "per_decision"], when=_FLAT)],
    "controller.initial_sigma": [_dimensions(uniform=(0.3, 1.0))],
    "controller.reward.kind": [_dimensions(choice=["paired", "paper"], when=_FLAT)],
    "controller.reward.lambda": [_dimensions(uniform=(0.5, 2.0), when=_PAPER)],
    "controller.reward.beta": [_dimensions(uniform=(0.0, 1.0), when=_PAPER)],
    "controller.ppo.learning_rate": _LEARNING_RATE,
    "controller.ppo.num_epochs": [_dimensions(integer=(4, 16))],
    "controller.ppo.clip": [_dimensions(uniform=(0.1, 0.4))],
    "controller.ppo.discount": [_dimensions(uniform=(0.9, 1.0), when=_PAPER)],
}
"""Unless `sweep.space` says otherwise."""

PBT_SPACE: Space = {
    "controller.ppo.learning_rate": _LEARNING_RATE,
    "controller.ppo.clip": [_dimensions(uniform=(0.1, 0.4))],
    "controller.ppo.entropy_coeff": [_dimensions(uniform=(0.0, 0.01))],
    "controller.ppo.max_grad_norm": [_dimensions(log_uniform=(0.1, 2.0))],
}
"""The same for population-based training, whose members inherit each other's weights: only what PPO can change on its way."""


class Sampler(Protocol):
    """What is asked of an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number between the bounds."""
        ...

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """A whole number, bounds included."""
        ...

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        """One of the choices."""
        ...


def sweep_space(config: Config) -> Space:
    """The space of the sweep, as given or built in."""
    return config.sweep.space or (PBT_SPACE if config.sweep.scheduler == "pbt" else DEFAULT_SPACE)


def draw(space: Space, base: Mapping[str, Any], sampler: Sampler) -> None:
    """One configuration, asked of `sampler` value by value; dimensions whose condition does not hold are not asked for.

    Args:
        space: in order; conditions look back.
        base: the config's tree, for conditions on what is not swept.
        sampler: remembers its answers, under names that `overrides_of` understands.
    """
    drawn: Overrides = {}
    for key, dimensions in space.items():
        for index, dimension in enumerate(dimensions):
            if key not in drawn and _holds(dimension, drawn, base):
                # A name stands for one distribution, whatever the condition.
                drawn[key] = _ask(sampler, f"{key}#{index}" if len(dimensions) > 1 else key, dimension)


def overrides_of(answers: Mapping[str, Any]) -> Overrides:
    """What a sampler was asked and answered, as config overrides.

    >>> overrides_of({"controller.ppo.clip": 0.3, "controller.hidden_units#1": 64})
    {'controller.ppo.clip': 0.3, 'controller.hidden_units': 64}
    """
    return {name.partition("#")[0]: value for name, value in answers.items()}


def trial_config(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with some of its values replaced.

    Raises:
        UserError: a key or value is wrong; names it.
    """
    tree = config.model_dump(mode="json")
    for key, value in overrides.items():
        *parents, leaf = key.split(".")
        node: Any = tree
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
            raise UserError(f"sweep.space: must name config keys that hold one value, got {key!r}")
        node[leaf] = value
    return validated(tree, "sweep.space")


def pbt_dimensions(config: Config) -> dict[str, DimensionConfig]:
    """The dimensions of a population, those that hold for this config.

    Raises:
        UserError: one of them cannot change while a controller is learnt.
    """
    space, base = sweep_space(config), config.model_dump(mode="json")

    def inheritable(key: str, dimension: DimensionConfig) -> bool:
        return key.startswith("controller.ppo.") and dimension.continuous and not set(dimension.when) & set(space)

    wrong = [key for key, dimensions in space.items() if not all(inheritable(key, dimension) for dimension in dimensions)]
    if wrong:
        raise UserError(
            "sweep.space: with scheduler pbt only continuous keys of controller.ppo may be swept, without conditions on each other, because weights "
            f"are inherited across configurations, got {', '.join(wrong)}; take them out or use scheduler: asha"
        )
    return {key: dimension for key, dimensions in space.items() for dimension in reversed(dimensions) if _holds(dimension, {}, base)}


def check_sweep(config: Config) -> None:
    """Refuses what would only be found out in the middle of a sweep.

    Raises:
        UserError: rungs that are no whole iterations, or a space that holds what a config cannot.
    """
    sweep, episodes = config.sweep, config.controller.episodes
    if episodes % sweep.episodes_per_rung:
        raise UserError(f"sweep.episodes_per_rung: must divide controller.episodes, got {sweep.episodes_per_rung} and {episodes}")
    if sweep.scheduler == "pbt":
        pbt_dimensions(config)
    single = [{key: value} for key, several in sweep_space(config).items() for one in several for value in _extremes(one)]
    for overrides in ({}, *single):
        per_iteration = trial_config(config, overrides).controller.episodes_per_iteration
        if sweep.episodes_per_rung % per_iteration:
            raise UserError(
                f"sweep.episodes_per_rung: must be a multiple of controller.episodes_per_iteration, got {sweep.episodes_per_rung} and {per_iteration}"
            )


def validation_cases(config: Config) -> list[Case]:
    """The held-out cases, the same for the same seed.

    Raises:
        UserError: a source of theirs is also trained on, or belongs to the configured sequence; or there are too few.
    """
    validation, curriculum = config.sweep.validation, config.controller.curriculum
    if curriculum.pool is not None and validation.pool is None:
        raise UserError("sweep.validation.pool: must be given where controller.curriculum.pool is, got null; name sources kept back for validation")
    num_tasks, most = validation.num_tasks or curriculum.num_tasks, validation.num_tasks or curriculum.most_tasks
    if validation.pool is not None and most > len(validation.pool):
        raise UserError(f"sweep.validation.num_tasks: must be at most the number of sources in its pool, got {most} and {len(validation.pool)}")
    labels = [spec.label for spec in (*config.sequence.anchors, *(validation.pool or []))]
    if len(set(labels)) < len(labels):
        raise UserError(f"sweep.validation.pool: names must be unique, and none an anchor's, got {labels}; give one of them a name")
    held_out = CurriculumConfig(
        worlds=validation.worlds, pool=validation.pool, num_tasks=num_tasks, num_cases=validation.num_cases, length_range=curriculum.length_range
    )
    _check_disjoint(config, held_out)
    return draw_cases(held_out, config.tuning, validation.num_cases, config.seed, label=VALIDATION)


def _check_disjoint(config: Config, held_out: CurriculumConfig) -> None:
    for other, origins in (
        ("controller.curriculum", _origins(config.controller.curriculum)),
        ("sequence.tasks", {_origin(spec) for spec in sequence_tasks(config)}),
    ):
        if shared := sorted(_origins(held_out) & origins):
            raise UserError(f"sweep.validation: must share nothing with {other}, or trials are judged on what they know, got {', '.join(shared)}")


def _origins(curriculum: CurriculumConfig) -> set[str]:
    return {_origin(spec) for spec in curriculum.pool} if curriculum.pool else set(curriculum.worlds)


def _origin(spec: SourceConfig) -> str:
    """A builtin task's world, since worlds are what nothing may cross; else where the rows come from, whatever the source is called."""
    if spec.format == "builtin" and spec.world:
        return spec.world
    facts = spec.model_dump(mode="json", exclude={"name", "revision", "unfit"}, exclude_none=True)
    return " ".join(f"{key}={value}" for key, value in facts.items() if value)


def _extremes(dimension: DimensionConfig) -> tuple[Any, ...]:
    return tuple(dimension.choice) if dimension.choice is not None else dimension.bounds


def _holds(dimension: DimensionConfig, drawn: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    def matches(key: str, wanted: Any) -> bool:
        return (drawn[key] if key in drawn else _value(base, key)) in (wanted if isinstance(wanted, list) else [wanted])

    return all(matches(key, wanted) for key, wanted in dimension.when.items())


def _value(tree: Mapping[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise UserError(f"sweep.space: `when` must name config keys, got {key!r}")
        node = node[part]
    return node


def _ask(sampler: Sampler, name: str, dimension: DimensionConfig) -> Any:
    if dimension.choice is not None:
        return sampler.suggest_categorical(name, dimension.choice)
    low, high = dimension.bounds
    if dimension.integer is not None:
        return sampler.suggest_int(name, int(low), int(high))
    return sampler.suggest_float(name, low, high, log=dimension.log_uniform is not None)
