"""What would spoil the benchmark's table, found before anything starts: places that meet, rows nobody can learn, oracles that cannot run.

config → check_settings → nothing, or one message

A place is a builtin world or the label of a source of one's own: the table's, what is practised on, what numbers are chosen on. Sources of one's
own are read too, so that a file cannot come in twice under two names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxymix.benchmark_cases import choice_cases, oracle_config, practised_sequences, table_methods, table_orders
from proxymix.benchmark_config import BUDGETED
from proxymix.config import Config
from proxymix.controllers.frozen import FrozenController
from proxymix.data.sources import configured_source
from proxymix.errors import UserError
from proxymix.tuning_config import SourceConfig


def check_settings(config: Config) -> None:
    """Everything that can be found wrong beforehand.

    Raises:
        UserError: a sequence that is none, a place in two roles, controllers that have no mean or are not learnt, or an oracle that cannot learn.
    """
    table = [spec for tasks in table_orders(config).values() for spec in tasks]
    _check_pools(config, table)
    _check_places(config, table)
    _check_rows(config, table)
    choice_cases(config)
    _check_controllers(config)
    _check_oracles(config)


def check_study_worlds(config: Config, key: str, worlds: Iterable[str]) -> None:
    """Of a study that something may be learnt from, in `key`: none of the table's, none that base models have seen.

    Raises:
        UserError: one is.
    """
    for world in worlds:
        if world.startswith("base-"):
            raise UserError(f"{key}: must be none that base models are pre-trained on, got {world}")
        if world == config.benchmark.world:
            raise UserError(f"{key}: must be none that the benchmark's table is made in, got {world}, which is benchmark.world")


def trained_places(config: Config) -> set[str]:
    """Worlds, and labels of sources of one's own, that the controller is trained on, or that the card of the given one names."""
    if config.controller.path is not None:
        card = FrozenController.load(config.controller.path).card
        return {str(source).rpartition("@")[2] for source in card.get("training", {}).get("sources", [])}
    curriculum = config.controller.curriculum
    return _places(curriculum.pool) if curriculum.pool else set(curriculum.worlds)


def longest_sequence(config: Config) -> int:
    """Tasks of the table's longest."""
    return max(map(len, table_orders(config).values()))


def _places(specs: Iterable[SourceConfig]) -> set[str]:
    return {spec.world or spec.label for spec in specs}


def _own(specs: Iterable[SourceConfig]) -> list[SourceConfig]:
    return [spec for spec in specs if spec.format != "builtin"]


def _check_pools(config: Config, table: Sequence[SourceConfig]) -> None:
    choice, curriculum = config.benchmark.choice, config.controller.curriculum
    chooses = any(method.endswith("_chosen") or method == "schedule_mean" for method in table_methods(config))
    if _own(table) and chooses and choice.pool is None:
        raise UserError("benchmark.choice.pool: must be given where benchmark.sequences are of your own sources; name others to choose shares on")
    if _own(table) and config.controller.path is None and curriculum.pool is None:
        raise UserError("controller.curriculum.pool: must be given where benchmark.sequences are of your own sources; or give controller.path")
    if _own(choice.pool or []) and not _own(table):
        raise UserError("benchmark.choice.pool: must be null where benchmark.sequences are builtin, got sources of your own")
    if choice.pool is not None and curriculum.most_tasks > len(choice.pool):
        raise UserError(
            f"benchmark.choice.pool: must hold the {curriculum.most_tasks} sources of controller.curriculum.num_tasks, got {len(choice.pool)}"
        )


def _check_places(config: Config, table: Sequence[SourceConfig]) -> None:
    choice, given = config.benchmark.choice, config.controller.path is not None
    judged, trained = _places(table), trained_places(config)
    key, practice = (
        "benchmark.sequences" if config.benchmark.orders else "benchmark.world",
        "the card of controller.path" if given else "controller.curriculum",
    )
    chosen = _places(choice.pool) if choice.pool else set(choice.worlds)
    if choice.pool is None and (shared := sorted(trained & chosen)):
        raise UserError(f"benchmark.choice.worlds: must share none with {practice}{'' if given else '.worlds'}, got {', '.join(shared)}")
    if shared := sorted(judged & trained):
        raise UserError(f"{key}: must not be trained on, got {', '.join(shared)}, which is in {practice}")
    if shared := sorted(judged & chosen):
        raise UserError(f"benchmark.choice: must hold nothing of the table's, got {', '.join(shared)} in both")
    if seen := sorted(place for place in judged | chosen if place.startswith("base-")):
        raise UserError(f"benchmark: must use no world that base models are pre-trained on, got {', '.join(seen)}")


def _check_rows(config: Config, table: Sequence[SourceConfig]) -> None:
    """Sources of one's own are told apart by what is in them."""
    judged = {row: spec.label for spec in _own(table) for row in _rows(config, spec)}
    practice = [] if config.controller.path else config.controller.curriculum.pool or []
    for key, pool in (("controller.curriculum.pool", practice), ("benchmark.choice.pool", config.benchmark.choice.pool or [])):
        for spec in _own(pool):
            if shared := [judged[row] for row in _rows(config, spec) if row in judged]:
                raise UserError(f"{key}: must share no rows with benchmark.sequences, got {len(shared)} of {spec.label!r} in {shared[0]!r}")


def _rows(config: Config, spec: SourceConfig) -> set[tuple[str, str]]:
    source = configured_source(config, spec)
    return {(row.prompt, row.response) for split in (source.train, source.validation, source.test) for row in split}


def _check_controllers(config: Config) -> None:
    settings, rows = config.controller, practised_sequences(config)
    if settings.path is not None:
        budgeted = [method for method in BUDGETED if method in table_methods(config)] + [row for row, names in rows.items() if names]
        if budgeted:
            raise UserError(
                f"benchmark: {', '.join(budgeted)} would be learnt with a controller's training budget, which one that is given does not have; "
                "take them out of benchmark.methods, same_sequences and oracle_sequences, or set controller.path to null"
            )
        return
    if "random_policy" in table_methods(config) and (settings.without or settings.decide_every > 1):
        raise UserError("benchmark.methods: random_policy knows no controller.without or decide_every; drop it")
    if config.benchmark.num_controllers > 1 and (settings.architecture == "flat" or settings.hidden_units):
        raise UserError("benchmark.num_controllers: must be 1 for a controller with hidden units, whose parameters have no mean; set it to 1")
    longest = longest_sequence(config) + len(config.sequence.anchors)
    if (settings.architecture == "flat" or any(rows.values())) and settings.max_sources < longest:
        raise UserError(
            "controller.max_sources: a flat controller, and one that is trained on the longest sequence, must hold its "
            f"{longest} sources, got {settings.max_sources}"
        )


def _check_oracles(config: Config) -> None:
    settings, target = config.benchmark, config.target
    learns = bool(practised_sequences(config)["oracle"])
    episodes = oracle_config(config).controller.episodes
    if learns and episodes % config.controller.episodes_per_iteration:
        raise UserError(f"benchmark.oracle_episodes: must be a multiple of controller.episodes_per_iteration, got {episodes}")
    if settings.headroom_cases and settings.headroom_evaluations < config.controller.episodes_per_iteration:
        raise UserError(
            f"benchmark.headroom_evaluations: must be at least controller.episodes_per_iteration, got {settings.headroom_evaluations}; "
            "raise it, or set benchmark.headroom_cases to 0"
        )
    if (learns or settings.headroom_cases) and (target.lora or target.precision != "fp32" or target.parallelism.use_gpu):
        raise UserError(
            "benchmark: oracle and headroom tune the target as proxies are tuned, all weights in fp32 without a GPU, got another target; "
            "set benchmark.oracle_sequences to [] and benchmark.headroom_cases to 0"
        )
