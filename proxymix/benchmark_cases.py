"""What the benchmark is run on: the table's cases, and what its controllers, choices and searches may see. They never meet.

config → table_cases | training_cases | choice_cases | sequence_cases          check_settings: everything that can be found wrong beforehand
"""

from __future__ import annotations

from proxymix.cases import Case, builtin_source, draw_cases
from proxymix.config import Config, CurriculumConfig
from proxymix.data.builtin import named_sequence
from proxymix.errors import UserError
from proxymix.tuning_config import ProxyConfig, SourceConfig

FIRST_PRACTICE_SEED = 2**20
"""Data streams that a table's sequence is practised on; the table's own count from 0."""


def table_cases(config: Config) -> list[Case]:
    """The named sequences × seeds of the table, at the configured steps a stage."""
    settings = config.benchmark
    return [_sequence_case(config, sequence, f"{sequence}/seed{seed}", seed) for sequence in settings.sequences for seed in range(settings.num_seeds)]


def training_cases(config: Config, seed: int) -> list[Case]:
    """What the controller of training seed `seed` learns from; seed 0's are those of the searches too."""
    return draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, seed, label=f"seed{seed}/case")


def choice_cases(config: Config) -> list[Case]:
    """What the rivals' numbers are chosen on.

    Raises:
        UserError: a world of theirs is trained on, or stands in the table.
    """
    choice, curriculum = config.benchmark.choice, config.controller.curriculum
    trained = {spec.world for spec in curriculum.pool if spec.world} if curriculum.pool else set(curriculum.worlds)
    if shared := sorted(trained & set(choice.worlds)):
        raise UserError(f"benchmark.choice.worlds: must share none with controller.curriculum.worlds, got {', '.join(shared)}")
    if config.benchmark.world in trained:
        raise UserError(f"benchmark.world: must not be trained on, got {config.benchmark.world}, which is in controller.curriculum")
    held_out = CurriculumConfig(worlds=choice.worlds, num_tasks=curriculum.num_tasks, length_range=curriculum.length_range)
    return draw_cases(held_out, config.tuning, choice.num_cases, config.seed, label="choice")


def sequence_cases(config: Config, sequence: str, num_cases: int, label: str) -> list[Case]:
    """One of the table's sequences on other data streams: for rows that may know the sequence, and for no others."""
    return [_sequence_case(config, sequence, f"{label}/case{index}", FIRST_PRACTICE_SEED + index) for index in range(num_cases)]


def headroom_cases(config: Config) -> list[Case]:
    """The table's cases that `headroom` stands for: the first seed of every sequence, then the second."""
    by_seed = sorted(table_cases(config), key=lambda case: case.seed)
    return by_seed[: config.benchmark.headroom_cases]


def target_as_proxy(config: Config) -> Config:
    """`config` with the target in the proxy's place: what learns or searches on the proxy does so on the target."""
    return config.model_copy(update={"proxy": ProxyConfig(model=config.target.model)})


def oracle_config(config: Config) -> Config:
    """How the oracle learns: on the target, for as many episodes as it is given."""
    oracle, episodes = target_as_proxy(config), config.benchmark.oracle_episodes or config.controller.episodes
    return oracle.model_copy(update={"controller": oracle.controller.model_copy(update={"episodes": episodes})})


def check_settings(config: Config) -> None:
    """What would otherwise be found wrong after the training.

    Raises:
        UserError: a sequence that is none, worlds in two places, controllers whose parameters have no mean, or an oracle that cannot learn.
    """
    cases, settings = table_cases(config), config.controller
    settings.must_be_learnt("jobs.benchmark")
    if "random_policy" in config.benchmark.methods and (settings.without or settings.decide_every > 1):
        raise UserError("benchmark.methods: random_policy knows no controller.without or decide_every; drop it")
    choice_cases(config)
    if config.benchmark.num_controllers > 1 and (settings.architecture == "flat" or settings.hidden_units):
        raise UserError("benchmark.num_controllers: must be 1 for a controller with hidden units, whose parameters have no mean; set it to 1")
    longest = max(len(case.tasks) for case in cases) + len(config.sequence.anchors)
    if (settings.architecture == "flat" or any(config.benchmark.rows_of_sequences.values())) and settings.max_sources < longest:
        raise UserError(
            "controller.max_sources: a flat controller, and one that is trained on the longest sequence, must hold its "
            f"{longest} sources, got {settings.max_sources}"
        )
    _check_oracles(config)


def _check_oracles(config: Config) -> None:
    settings, target = config.benchmark, config.target
    learns = bool(settings.rows_of_sequences["oracle"])
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


def _sequence_case(config: Config, sequence: str, name: str, seed: int) -> Case:
    tasks: tuple[SourceConfig, ...] = tuple(builtin_source(spec) for spec in named_sequence(f"{sequence}@{config.benchmark.world}"))
    return Case(name, tasks, (config.tuning.steps_per_stage,) * len(tasks), seed)
