"""Scores: whatever checkpoint has none yet is scored now, then accuracy.json, metrics.json and the table."""

from __future__ import annotations

from rich.console import Console

from cluster.evaluation import EvaluationPool
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.artifacts import write_json
from proxymix.cases import load_sources, sequence_tasks
from proxymix.evaluation.scoring import assemble_accuracy
from proxymix.summary import summarise
from proxymix.table import metrics_table


def evaluate(run: Run, pool: EvaluationPool) -> None:
    """Waits for the last scores and writes what follows from them."""
    config = run.config
    with run.phase("evaluate"), run.progress("checkpoints scored") as update:
        pool.finish(update)
    tasks = [spec.label for spec in sequence_tasks(config)]
    anchors = [spec.label for spec in config.sequence.anchors]
    for method in config.methods:
        for seed in config.seeds:
            assemble_accuracy(run.folder, method, seed, tasks, anchors)
    write_json(run.folder / "metrics.json", summarise(config, run.folder))
    show_table(run)


def is_complete(run: Run) -> bool:
    """Whether `metrics.json` already holds every method and seed that is asked for."""
    metrics = run.read("metrics.json")
    return metrics is not None and metrics["seeds"] == run.config.seeds and set(metrics["methods"]) == set(run.config.methods)


def show_table(run: Run) -> None:
    """The table, on standard output."""
    Console().print(metrics_table(run.read("metrics.json")))


def job(run: Run) -> None:
    """Stand-alone: score what the run folder holds."""
    config = run.config
    sources = load_sources(config)
    with ray_session(config), EvaluationPool(config, pretrain_base(run)[1], sources) as pool:
        pool.start(run.folder, [(method, seed) for seed in config.seeds for method in config.methods])
        evaluate(run, pool)


if __name__ == "__main__":
    launch(job)
