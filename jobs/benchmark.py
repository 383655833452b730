"""The evidence: every method on the named sequences of a world nobody has seen, with paired differences; `table.md`, plots and `metrics.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.session import ray_session
from cluster.table_runs import TableRun
from jobs.accounted_runs import run_on
from jobs.benchmark_rows import Ready, Rows, chosen_rows, everywhere, oracle_rows, searched_rows, steered_rows
from jobs.entry import launch
from jobs.pretrain_base import preset_bases, pretrain_base
from jobs.run import Run
from jobs.train_controller import check_given
from proxymix.artifacts import write_json
from proxymix.benchmark_cases import table_cases, table_methods
from proxymix.benchmark_checks import check_settings, longest_sequence
from proxymix.benchmark_table import UNIT, benchmark_metrics, case_measures, write_table
from proxymix.config import PROXYMIX, Config, ModelConfig
from proxymix.controllers.rivals import Found

REALISED = "_realised"
"""Rows of rules at ProxyMix's own share on the same case; they copy the controller, so they pay for it."""
QUICK = (
    *("name=benchmark_quick", "benchmark.sequences=[long]", "benchmark.num_seeds=2", "benchmark.num_controllers=2", "controller.episodes=96"),
    *("benchmark.choice.num_cases=2", "benchmark.choice.shares=[20,40]", "benchmark.choice.constants=[5,10]", "target.model.preset=micro"),
    *("benchmark.headroom_cases=1", "benchmark.headroom_evaluations=64", "benchmark.oracle_episodes=48", "controller.curriculum.num_cases=6"),
    "benchmark.methods=[no_replay,random_10,random_30,random_50,random_chosen,proportional_chosen,random_realised,proportional_realised,ramp_chosen,"
    "doremi,schedule_mean,schedule_tuned,random_policy,untrained,shuffled]",
)
"""What `--quick` sets, beneath what the command line sets."""


def run_benchmark(run: Run, config: Config, target_base: str, prepared: Rows, folder: Path) -> dict[str, Any]:
    """Every method on every case; writes `metrics.json`, `table.md` and the plots into `folder`, and returns the metrics."""
    methods = list(dict.fromkeys([PROXYMIX, *table_methods(config), *prepared]))
    plain = everywhere(config, {method: Ready() for method in methods if method not in prepared and not method.endswith(REALISED)})
    rows = {**plain, **prepared}
    results = _run(run, config, target_base, rows, "table")
    realised = {
        method: {
            name: Ready(Found(numbers={method: 100 * results[PROXYMIX, name]["replay_share"]}), policy_flops=ready.policy_flops)
            for name, ready in rows[PROXYMIX].items()
        }
        for method in methods
        if method.endswith(REALISED)
    }
    results |= _run(run, config, target_base, realised, "realised shares")
    rows |= realised
    unit = UNIT if UNIT in methods else "no_replay" if "no_replay" in methods else PROXYMIX
    cases = [case.name for case in table_cases(config)]
    measures = {
        method: [
            case_measures(results[method, name], rows[method][name].policy_flops, results[unit, name]["flops"]) if name in rows[method] else None
            for name in cases
        ]
        for method in methods
    }
    metrics = benchmark_metrics(cases, measures, PROXYMIX)
    write_json(folder / "metrics.json", metrics)
    write_table(metrics, folder)
    return metrics


def _tables(run: Run, config: Config, target_base: str, prepared: Rows, folder: Path) -> None:
    """The table, and then the same with what nobody could afford, which takes as long again."""
    run_benchmark(run, config, target_base, prepared, folder)
    if oracles := oracle_rows(run, config, target_base):
        run_benchmark(run, config, target_base, prepared | oracles, folder)


def _run(run: Run, config: Config, base: str, rows: Rows, title: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The results of `rows` on the target, by (method, case name)."""
    cases = {case.name: case for case in table_cases(config)}
    runs = [TableRun(cases[name], method, ready.found, ready.controller) for method, row in rows.items() for name, ready in row.items()]
    return dict(zip(((r.method, r.case.name) for r in runs), run_on(run, config, "target", base, runs, title), strict=True))


def more_targets(run: Run) -> dict[str, tuple[Config, str]]:
    """Config and base of every further target size, by its name."""
    found = {}
    for preset in run.config.benchmark.more_targets:
        model = ModelConfig(preset=preset, implementation=run.config.target.model.implementation)
        (folder,) = preset_bases(run, [model], "target", f"base model {preset}")
        found[preset] = run.config.model_copy(update={"target": run.config.target.model_copy(update={"model": model})}), folder
    return found


def job(run: Run) -> None:
    """Stand-alone: bases, controllers, choices, searches, a table a target."""
    check_given(run.config, longest_sequence(run.config))
    check_settings(run.config)
    folder = run.folder / "benchmark"
    with ray_session(run.config):
        proxy_base, target_base = pretrain_base(run)
        with run.phase("benchmark"):
            steered = steered_rows(run, proxy_base)
            prepared = steered | chosen_rows(run, proxy_base, steered) | searched_rows(run, proxy_base)
            _tables(run, run.config, target_base, prepared, folder)
            for preset, (config, base) in more_targets(run).items():
                run_benchmark(run, config, base, prepared, folder / preset)  # What nobody could afford is asked of one target alone.
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    launch(job, quick=QUICK)
