"""What the benchmark is run on: the table's rows and cases, and what its controllers, choices and searches may see. They never meet.

config → table_methods × table_cases; training_cases | choice_cases | sequence_cases          (`proxymix.benchmark_checks` keeps them apart)
"""

from __future__ import annotations

from proxymix.benchmark_config import BUDGETED, METHODS
from proxymix.cases import Case, builtin_source, draw_cases
from proxymix.config import Config, CurriculumConfig
from proxymix.data.builtin import named_sequence
from proxymix.data.fingerprints import content_key
from proxymix.tuning_config import ProxyConfig, SourceConfig

FIRST_PRACTICE_SEED = 2**20
"""Data streams that a table's sequence is practised on; the table's own count from 0."""


def table_methods(config: Config) -> list[str]:
    """The rows that are asked for."""
    if config.benchmark.methods is not None:
        return config.benchmark.methods
    return [method for method in METHODS if config.controller.path is None or method not in BUDGETED]


def practised_sequences(config: Config) -> dict[str, list[str]]:
    """The sequences that `proxymix_same` and `oracle` stand for: the first two unless told, none where a controller is given."""
    settings = config.benchmark
    first = [] if config.controller.path else list(settings.sequences)[:2]
    asked = {"proxymix_same": settings.same_sequences, "oracle": settings.oracle_sequences}
    return {row: first if names is None else names for row, names in asked.items()}


def table_orders(config: Config) -> dict[str, tuple[SourceConfig, ...]]:
    """The tasks of every sequence of the table, by its name."""
    if orders := config.benchmark.orders:
        return {name: tuple(tasks) for name, tasks in orders.items()}
    names, world = config.benchmark.sequences, config.benchmark.world
    return {name: tuple(builtin_source(spec) for spec in named_sequence(f"{name}@{world}")) for name in names}


def table_cases(config: Config) -> list[Case]:
    """The sequences × seeds of the table, at the configured steps a stage."""
    settings = config.benchmark
    return [_sequence_case(config, sequence, f"{sequence}/seed{seed}", seed) for sequence in settings.sequences for seed in range(settings.num_seeds)]


def training_cases(config: Config, seed: int) -> list[Case]:
    """What the controller of training seed `seed` learns from; seed 0's are those of the searches too."""
    return draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, seed, label=f"seed{seed}/case")


def choice_cases(config: Config) -> list[Case]:
    """What the rivals' numbers are chosen on."""
    choice, curriculum = config.benchmark.choice, config.controller.curriculum
    held_out = CurriculumConfig(worlds=choice.worlds, pool=choice.pool, num_tasks=curriculum.num_tasks, length_range=curriculum.length_range)
    return draw_cases(held_out, config.tuning, choice.num_cases, config.seed, label="choice")


def sequence_cases(config: Config, sequence: str, num_cases: int, label: str) -> list[Case]:
    """One of the table's sequences on other data streams: for rows that may know the sequence, and for no others."""
    return [_sequence_case(config, sequence, f"{label}/case{index}", FIRST_PRACTICE_SEED + index) for index in range(num_cases)]


def sequence_mark(config: Config, sequence: str) -> str:
    """What tells a sequence from another of its name: its world, or its tasks where they are one's own."""
    if tasks := config.benchmark.orders.get(sequence):
        return f"{sequence}-{content_key([spec.model_dump(mode='json') for spec in tasks])[:8]}"
    return f"{sequence}@{config.benchmark.world}"


def headroom_cases(config: Config) -> list[Case]:
    """The table's cases that `headroom` stands for: the first seed of every sequence, then the second."""
    by_seed = sorted(table_cases(config), key=lambda case: case.seed)
    return by_seed[: config.benchmark.headroom_cases]


def target_as_proxy(config: Config) -> Config:
    """`config` with the target in the proxy's place: what learns or searches on the proxy does so on the target."""
    return config.model_copy(update={"proxy": ProxyConfig(model=config.target.model, gpus_per_runner=config.proxy.gpus_per_runner)})


def oracle_config(config: Config) -> Config:
    """How the oracle learns: on the target, for as many episodes as it is given."""
    oracle, episodes = target_as_proxy(config), config.benchmark.oracle_episodes or config.controller.episodes
    return oracle.model_copy(update={"controller": oracle.controller.model_copy(update={"episodes": episodes})})


def _sequence_case(config: Config, sequence: str, name: str, seed: int) -> Case:
    tasks = table_orders(config)[sequence]
    return Case(name, tasks, (config.tuning.steps_per_stage,) * len(tasks), seed)
