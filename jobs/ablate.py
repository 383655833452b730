"""What does the controller need? Variants of it, one thing left out each, on the same cases as the full one: paired intervals and a forest plot.

rows → a training a variant and seed → every variant on every case of the target → ablation.json, table.md, forest.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.session import ray_session
from cluster.table_runs import Role, TableRun
from jobs.accounted_runs import run_on
from jobs.entry import launch
from jobs.pretrain_base import preset_bases, pretrain_base
from jobs.run import Run
from jobs.train_controller import learn
from proxymix.ablation_config import FULL
from proxymix.ablation_rows import noise_of, trained_as
from proxymix.ablation_table import ablation_markdown, mean_measures
from proxymix.account import total_flops
from proxymix.artifacts import write_json, write_text
from proxymix.benchmark_checks import check_study_worlds, trained_places
from proxymix.benchmark_table import UNIT, benchmark_metrics, case_measures
from proxymix.cases import Case, draw_cases
from proxymix.config import Config
from proxymix.controllers.rivals import Found
from proxymix.controllers.schedules import mean_schedule
from proxymix.data.fingerprints import content_key
from proxymix.errors import UserError
from proxymix.report.ablation_plots import plot_forest
from proxymix.report.theme import save_png

STATIC = ("mean_schedule", "mean_share")


@dataclass(frozen=True)
class Cell:
    """One run: a row on a case with the controller of one training."""

    row: str
    case: Case
    seed: int
    run: TableRun
    found_flops: int = 0
    """What finding the row's numbers took, beside its controller."""


def ablation_cases(config: Config, num_tasks: int | tuple[int, int], num_cases: int) -> list[Case]:
    """Random orders of the ablation's world.

    Raises:
        UserError: the world is trained in, the benchmark's table is made in it, or base models have seen it.
    """
    world, curriculum = config.ablation.world, config.controller.curriculum
    check_study_worlds(config, "ablation.world", [world])
    if world in trained_places(config):
        raise UserError(f"ablation.world: must not be trained in, got {world}, which is in controller.curriculum")
    drawn = curriculum.model_copy(update={"worlds": [world], "pool": None, "num_tasks": num_tasks})
    return draw_cases(drawn, config.tuning, num_cases, config.seed, label=f"ablation{num_tasks if isinstance(num_tasks, int) else ''}/case")


def check_settings(config: Config) -> None:
    """What would otherwise be found wrong after a training.

    Raises:
        UserError: a row that is no variant of this controller, a world that is trained in, or sequences that a flat controller cannot hold.
    """
    config.controller.must_be_learnt("jobs.ablate")
    for row in config.ablation.rows:
        trained_as(config, row)
    lengths, slots = config.ablation.lengths, config.controller.max_sources
    for length in lengths:
        ablation_cases(config, length, 1)
    longest = max(lengths, default=0) + len(config.sequence.anchors)
    if config.controller.architecture == "flat" and longest > slots:
        raise UserError(
            f"ablation.lengths: a flat controller of {slots} sources cannot hold {longest}; shorten them, or raise controller.max_sources"
        )


def train_variants(run: Run, proxy_base: str) -> dict[str, list[str]]:
    """Folders of the frozen controllers, one a training seed, by row; `full` among them."""
    variants = {row: variant for row in (FULL, *run.config.ablation.rows) if (variant := run.config if row == FULL else trained_as(run.config, row))}
    bases = _proxy_bases(run, variants, proxy_base)
    seeds = range(run.config.ablation.num_controllers)
    return {row: [_train(run, variant, bases[row], row, seed) for seed in seeds] for row, variant in variants.items()}


def _proxy_bases(run: Run, variants: Mapping[str, Config], proxy_base: str) -> dict[str, str]:
    others = {row: variant for row, variant in variants.items() if variant.proxy != run.config.proxy}
    folders = preset_bases(run, [variant.proxy.model for variant in others.values()], "proxy", "other proxies")
    return dict.fromkeys(variants, proxy_base) | dict(zip(others, folders, strict=True))


def _train(run: Run, variant: Config, base: str, row: str, seed: int) -> str:
    """Learnt now unless it is there already; the folder is named by what decides it, so that settings may change between two calls."""
    controller = variant.controller.model_copy(update={"seed": seed})
    config, curriculum = variant.model_copy(update={"controller": controller}), controller.curriculum
    settings = controller.model_dump(mode="json", exclude={"num_env_runners", "swept"})
    key = content_key([settings, variant.tuning.model_dump(mode="json"), Path(base).name])
    folder = run.folder / "ablation" / "controllers" / f"{row}-{key[:8]}" / f"seed{seed}"
    if not (folder / "controller.json").exists():
        prefix = f"{row}/seed{seed}/"
        # All variants meet the same cases; the names alone differ, for the account.
        cases = draw_cases(curriculum, config.tuning, curriculum.num_cases, seed, label=f"seed{seed}/case")
        learn(run, config, base, [replace(case, name=f"{row}/{case.name}") for case in cases], folder, prefix)
    return str(folder)


def static_averages(run: Run, proxy_base: str, controllers: Sequence[str]) -> list[tuple[Found, int]]:
    """Per controller, what it does on average on the proxy, on cases like those it was trained on: a schedule, and a single share; and operations."""
    config = run.config
    curriculum = config.controller.curriculum
    cases = draw_cases(curriculum, config.tuning, config.ablation.num_cases, config.seed, label="average")
    found = []
    for seed, folder in enumerate(controllers):
        cells = [Cell("average", case, seed, TableRun(case, FULL, controller=folder)) for case in cases]
        results = _run(run, "proxy", proxy_base, cells, f"mean schedule of seed {seed}")
        share = float(np.mean([result["replay_share"] for result in results]))
        schedule = mean_schedule([result["shares"] for result in results])
        average = Found(numbers={"random_mean": 100 * share}, schedules={"mean_schedule": schedule})
        found.append((average, sum(result["flops"] for result in results)))
    return found


def variant_cells(
    config: Config, controllers: Mapping[str, Sequence[str]], averages: Sequence[tuple[Found, int]], cases: Sequence[Case]
) -> list[Cell]:
    """Every row, training and case of the first table, and the unit's run of every case."""
    cells = []
    for row in (FULL, *config.ablation.rows):
        for seed in range(config.ablation.num_controllers):
            for case in cases:
                if row in STATIC:
                    found, flops = averages[seed]
                    cells.append(Cell(row, case, seed, TableRun(case, "random_mean" if row == "mean_share" else row, found), flops))
                else:
                    asked = TableRun(case, FULL, controller=controllers.get(row, controllers[FULL])[seed], noise=noise_of(row))
                    cells.append(Cell(row, case, seed, asked))
    return cells + [Cell(UNIT, case, 0, TableRun(case, UNIT)) for case in cases]


def ablate(run: Run, bases: tuple[str, str]) -> dict[str, Any]:
    """Trainings, runs, tables; written under `ablation/`."""
    config, settings = run.config, run.config.ablation
    controllers = train_variants(run, bases[0])
    averages = static_averages(run, bases[0], controllers[FULL]) if set(STATIC) & set(settings.rows) else []
    cases = ablation_cases(config, config.controller.curriculum.num_tasks, settings.num_cases)
    cells = variant_cells(config, controllers, averages, cases)
    variants = _metrics(run, cases, cells, _run(run, "target", bases[1], cells, "variants"))
    longer = {}
    for length in settings.lengths:
        long_cases = ablation_cases(config, length, settings.num_long_cases)
        cells = [Cell(rule, case, 0, TableRun(case, rule)) for rule in dict.fromkeys((*settings.rivals, UNIT)) for case in long_cases]
        cells += [Cell(FULL, case, seed, TableRun(case, FULL, controller=f)) for seed, f in enumerate(controllers[FULL]) for case in long_cases]
        longer[str(length)] = _metrics(run, long_cases, cells, _run(run, "target", bases[1], cells, f"{length} tasks"))
    ablation = {"num_controllers": settings.num_controllers, "variants": variants, "longer": longer}
    folder = run.folder / "ablation"
    write_json(folder / "ablation.json", ablation)
    write_text(folder / "table.md", ablation_markdown(ablation))
    save_png(plot_forest(ablation), folder / "forest.png")
    return ablation


def _metrics(run: Run, cases: Sequence[Case], cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = list(zip(cells, results, strict=True))
    units = {cell.case.name: result["flops"] for cell, result in found if cell.row == UNIT}
    rows = dict.fromkeys([FULL, *(cell.row for cell in cells)])

    def measured(row: str, case: Case) -> dict[str, float | None]:
        own = [(cell, result) for cell, result in found if (cell.row, cell.case.name) == (row, case.name)]
        return mean_measures([case_measures(result, _policy_flops(run, row, cell.seed) + cell.found_flops, units[case.name]) for cell, result in own])

    measures = {row: [measured(row, case) for case in cases] for row in rows}
    return benchmark_metrics([case.name for case in cases], measures, FULL)


def _policy_flops(run: Run, row: str, seed: int) -> int:
    """The training of the row's controller, or of the full one that it uses; 0 for a rule."""
    if row not in (FULL, *run.config.ablation.rows):
        return 0
    lines = run.account.made("reference", "episodes")
    own = [line for line in lines if line.id.startswith(f"{row}/seed{seed}/")]
    return total_flops(own or [line for line in lines if line.id.startswith(f"{FULL}/seed{seed}/")])


def _run(run: Run, role: Role, base: str, cells: Sequence[Cell], title: str) -> list[dict[str, Any]]:
    lines = [f"{cell.case.name}/{cell.row}/seed{cell.seed}" for cell in cells]
    return run_on(run, run.config, role, base, [cell.run for cell in cells], title, lines)


def job(run: Run) -> None:
    """Stand-alone: bases, trainings, tables."""
    check_settings(run.config)
    with ray_session(run.config):
        bases = pretrain_base(run)
        with run.phase("ablate"):
            ablate(run, bases)
    print(Path(run.folder / "ablation" / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    launch(job)
