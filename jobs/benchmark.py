"""The evidence: every method on the named sequences of a world nobody has seen, with paired differences; `table.md` and `metrics.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from cluster.policy_training import freeze_controller, train_policy
from cluster.reference_runs import with_references
from cluster.session import ray_session
from cluster.table_runs import Role, TableRun, run_table, schedules_of
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from jobs.train_controller import account_for, line_id
from proxymix.account import Cost, total_flops
from proxymix.artifacts import write_json, write_text
from proxymix.benchmark_config import CHOSEN
from proxymix.benchmark_table import benchmark_markdown, benchmark_metrics, case_measures
from proxymix.cases import Case, builtin_source, draw_cases
from proxymix.config import PROXYMIX, Config, CurriculumConfig
from proxymix.controllers.frozen import FrozenController, save_controller
from proxymix.controllers.rivals import Found
from proxymix.data.builtin import named_sequence
from proxymix.errors import UserError
from proxymix.reward import final_score

UNIT = "random_30"
"""What a random-replay target run costs is this row's cost on the same case."""
ASKING = (PROXYMIX, "shuffled")
"""Methods that ask the mean controller; `proxymix_seed<k>` ask their own."""


@dataclass(frozen=True)
class Chosen:
    """What was found on the proxy, for the rows that are named by a word."""

    numbers: Mapping[str, float]
    """`<rule>_chosen` → percent, or the ramp's c."""
    schedule: list[list[float]]
    """The controller's own mean schedule."""
    flops: Mapping[str, int]
    """What choosing took, per row that rests on a choice."""


def table_cases(config: Config) -> list[Case]:
    """The named sequences × seeds of the table, at the configured steps a stage."""
    settings = config.benchmark
    cases = []
    for sequence in settings.sequences:
        tasks = tuple(builtin_source(spec) for spec in named_sequence(f"{sequence}@{settings.world}"))
        for seed in range(settings.num_seeds):
            cases.append(Case(f"{sequence}/seed{seed}", tasks, (config.tuning.steps_per_stage,) * len(tasks), seed))
    return cases


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


def check_settings(config: Config) -> None:
    """What would otherwise be found wrong after the training.

    Raises:
        UserError: a sequence that is none, worlds in two places, or controllers whose parameters have no mean.
    """
    cases, settings = table_cases(config), config.controller
    choice_cases(config)
    if config.benchmark.num_controllers > 1 and (settings.architecture == "flat" or settings.hidden_units):
        raise UserError("benchmark.num_controllers: must be 1 for a controller with hidden units, whose parameters have no mean; set it to 1")
    longest = max(len(case.tasks) for case in cases) + len(config.sequence.anchors)
    if settings.architecture == "flat" and settings.max_sources < longest:
        raise UserError(
            f"controller.max_sources: a flat controller must hold the {longest} sources of the longest sequence, got {settings.max_sources}"
        )


def train_controllers(run: Run, proxy_base: str) -> dict[str, str]:
    """Folders of the frozen controllers by method: one a training seed, and the mean of their parameters."""
    folders = {f"{PROXYMIX}_seed{seed}": str(_train(run, proxy_base, seed)) for seed in range(run.config.benchmark.num_controllers)}
    members = [FrozenController.load(folder) for folder in folders.values()]
    parameters = [load_file(Path(folder) / "controller.safetensors") for folder in folders.values()]
    mean = {name: np.mean([each[name] for each in parameters], axis=0) for name in parameters[0]}
    trained = [member.card["training"] for member in members]
    facts = {
        "members": [member.sha256 for member in members],
        "decide_every": run.config.controller.decide_every,
        "training": {
            "sequences": [sequence for each in trained for sequence in each["sequences"]],
            "sources": sorted({source for each in trained for source in each["sources"]}),
        },
    }
    folder = run.folder / "controllers" / "mean"
    save_controller(folder, mean, name=PROXYMIX, architecture=run.config.controller.architecture, facts=facts, without=run.config.controller.without)
    return dict.fromkeys(ASKING, str(folder)) | folders


def _train(run: Run, proxy_base: str, seed: int) -> Path:
    """The controller of one training seed, learnt now unless it is there already; the data are the same for all."""
    controller = run.config.controller.model_copy(update={"seed": seed})
    config, folder = run.config.model_copy(update={"controller": controller}), run.folder / "controllers" / f"seed{seed}"
    if not (folder / "controller.json").exists():
        cases = draw_cases(controller.curriculum, config.tuning, controller.curriculum.num_cases, seed, label=f"seed{seed}/case")
        with run.progress(f"reference runs, seed {seed}") as update:
            referenced = with_references(config, proxy_base, cases, run.account, update)
        with run.progress(f"controller, seed {seed} (episodes)") as update:
            result = train_policy(
                config, proxy_base, referenced, folder, lambda row: update((row["iteration"] + 1) * row["episodes"], controller.episodes)
            )
        for row in result.rows:
            if not run.account.has("episodes", f"seed{seed}/{line_id(row)}"):
                account_for(run.account, row, f"seed{seed}/")
        freeze_controller(config, result, _controller_flops(run, [seed]), folder)
    return folder


def choose(run: Run, proxy_base: str, controllers: Mapping[str, str]) -> Chosen:
    """The best number of every rule on the proxy, by mean J on validation rows, and the controller's mean schedule there."""
    choice, cases = run.config.benchmark.choice, choice_cases(run.config)
    candidates = {f"{rule}_chosen": {share: f"{rule}_{share:g}" for share in choice.shares} for rule in CHOSEN}
    candidates["ramp_chosen"] = {constant: f"ramp_{constant:g}" for constant in choice.constants}
    wanted = {name: numbers for name, numbers in candidates.items() if name in run.config.benchmark.methods}
    methods = [*dict.fromkeys(method for numbers in wanted.values() for method in numbers.values()), PROXYMIX]
    runs = [TableRun(case, method, controller=controllers.get(method)) for method in methods for case in cases]
    results = _run(run, "proxy", proxy_base, runs, "choices on the proxy")
    by_method = {method: results[start * len(cases) :][: len(cases)] for start, method in enumerate(methods)}
    score = {method: float(np.mean([final_score(result["validation"]) for result in found])) for method, found in by_method.items()}
    numbers = {name: max(options, key=lambda number: score[options[number]]) for name, options in wanted.items()}
    spent = {method: sum(result["cost"]["flops"] for result in found) for method, found in by_method.items()}
    flops = {name: sum(spent[method] for method in options.values()) for name, options in wanted.items()} | {"schedule_mean": spent[PROXYMIX]}
    write_json(run.folder / "benchmark" / "choices.json", {"numbers": numbers, "scores": score, "cases": [case.name for case in cases]})
    return Chosen(numbers, schedules_of(by_method[PROXYMIX]), flops)


def run_benchmark(run: Run, target_base: str, controllers: Mapping[str, str], chosen: Chosen) -> dict[str, Any]:
    """Every method on every case; writes and returns `benchmark/metrics.json`."""
    config, cases = run.config, table_cases(run.config)
    methods = [*dict.fromkeys([PROXYMIX, *config.benchmark.methods, *(name for name in controllers if name not in ASKING)])]
    first = [
        TableRun(case, method, _found(method, chosen), controllers.get(method)) for method in methods for case in cases if method != "random_realised"
    ]
    results = dict(zip(((r.method, r.case.name) for r in first), _run(run, "target", target_base, first, "table"), strict=True))
    if "random_realised" in methods:
        realised = {case.name: 100 * results[PROXYMIX, case.name]["replay_share"] for case in cases}
        later = [TableRun(case, "random_realised", Found(numbers={"random_realised": realised[case.name]})) for case in cases]
        results |= {
            ("random_realised", r.case.name): result
            for r, result in zip(later, _run(run, "target", target_base, later, "realised share"), strict=True)
        }
    unit = UNIT if UNIT in methods else "no_replay" if "no_replay" in methods else PROXYMIX
    measures = {
        method: [
            case_measures(results[method, case.name], _policy_flops(run, method, chosen), results[unit, case.name]["cost"]["flops"]) for case in cases
        ]
        for method in methods
    }
    metrics = benchmark_metrics([case.name for case in cases], measures, PROXYMIX)
    write_json(run.folder / "benchmark" / "metrics.json", metrics)
    write_text(run.folder / "benchmark" / "table.md", benchmark_markdown(metrics))
    return metrics


def _policy_flops(run: Run, method: str, chosen: Chosen) -> int:
    """What a row needed before its own target run: the controllers it asks or copies, and the choices it rests on. Pilots are in no row."""
    seeds = range(run.config.benchmark.num_controllers)
    if method.startswith(f"{PROXYMIX}_seed"):
        seeds = [int(method.removeprefix(f"{PROXYMIX}_seed"))]
    elif method not in (*ASKING, "schedule_mean", "random_realised"):
        seeds = []
    return _controller_flops(run, seeds) + chosen.flops.get(method, 0)


def _controller_flops(run: Run, seeds: Iterable[int]) -> int:
    """Of those trainings and the reference runs of their cases."""
    marks = tuple(f"seed{seed}" for seed in seeds)
    return total_flops(line for line in run.account.made("reference", "episodes") if line.id.startswith(tuple(f"{mark}/" for mark in marks)))


def _found(method: str, chosen: Chosen) -> Found:
    if method in chosen.numbers:
        return Found(numbers={method: chosen.numbers[method]})
    return Found(schedules={method: chosen.schedule}) if method == "schedule_mean" else Found()


def _run(run: Run, role: Role, base: str, runs: list[TableRun], title: str) -> list[dict[str, Any]]:
    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        asked = runs[index]
        run.account.add("tuning", f"{role}/{asked.case.name}/{asked.method}", role, Cost(**result["cost"]), cached=cached)

    with run.progress(title) as update:
        return run_table(run.config, role, base, runs, update, note)


def job(run: Run) -> None:
    """Stand-alone: bases, controllers, choices, table."""
    check_settings(run.config)
    with ray_session(run.config):
        proxy_base, target_base = pretrain_base(run)
        with run.phase("benchmark"):
            controllers = train_controllers(run, proxy_base)
            run_benchmark(run, target_base, controllers, choose(run, proxy_base, controllers))
    print(Path(run.folder / "benchmark" / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    launch(job)
