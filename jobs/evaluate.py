"""Scores: whatever checkpoint has none yet is scored now, then accuracy.json, metrics.json and the table."""

from __future__ import annotations

from collections import Counter

from rich.console import Console

from cluster.evaluation import EvaluationPool
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.artifacts import target_folder, write_json
from proxymix.cases import load_sources, sequence_tasks
from proxymix.evaluation.scoring import assemble_accuracy
from proxymix.journal import is_finished
from proxymix.summary import summarise
from proxymix.table import metrics_table


def evaluate(run: Run, pool: EvaluationPool) -> None:
    """Waits for the last scores and writes what follows from them."""
    config = run.config
    with run.phase("evaluate"), run.progress("checkpoints scored") as update:
        pool.finish(update)
    run.meanwhile("start_engines", pool.start_seconds)
    tasks = [spec.label for spec in sequence_tasks(config)]
    anchors = [spec.label for spec in config.sequence.anchors]
    unscored, cut = Counter[str](), Counter[str]()
    for method in config.methods:
        for seed in config.seeds:
            accuracy = assemble_accuracy(run.folder, method, seed, tasks, anchors)
            unscored.update(accuracy["num_unscored"])
            cut.update(accuracy["num_cut"])
            for name, reason in accuracy["unscored"].items():
                run.say(f"{method}/seed{seed}, {name}: not scored: {reason}; the same command tries it again")
    if told := _counts(unscored):
        run.say(f"answers without a score, left out of every mean: {told}")
    if told := _counts(cut):
        run.say(
            f"answers of tuned models not wholly right, and cut at evaluation.max_new_tokens={config.evaluation.max_new_tokens}: {told}; raise it"
        )
    write_json(run.folder / "metrics.json", summarise(config, run.folder))
    show_table(run)


def _counts(of: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in of.items() if count)


def is_complete(run: Run) -> bool:
    """Whether every target run that is asked for is over and `metrics.json` holds a score of each."""
    config, metrics = run.config, run.read("metrics.json")
    if metrics is None or metrics["seeds"] != config.seeds or list(metrics["methods"]) != config.methods:
        return False
    over = all(is_finished(target_folder(run.folder, method, seed)) for method in config.methods for seed in config.seeds)
    return over and all(score is not None for row in metrics["methods"].values() for score in row["AA"]["per_seed"])


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
