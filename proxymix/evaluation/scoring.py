"""From generated answers to the score files of a run, and from those to its accuracy matrix.

    answers → checkpoint_scores → scores/task<k>.json, base_scores.json → assemble_accuracy → accuracy.json

What could not be scored is null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proxymix.artifacts import read_json, target_folder, write_json
from proxymix.evaluation.refusal import classify_refusal
from proxymix.evaluation.safety import safety_scores
from proxymix.evaluation.scorers import accuracy
from proxymix.types import Example, Source


def checkpoint_scores(sources: Sequence[Source], answers: Mapping[str, Sequence[str]], gamma: float) -> dict[str, Any]:
    """Scores of one model on the test rows of every source.

    Args:
        sources: what was asked.
        answers: per source name, one generated text per test row.
        gamma: γ of Eq. 7.

    Returns:
        `sources` (name → accuracy in [0, 1] or None, and number of test rows) and `safety` (all refusal-scored sources together; None without one).
    """
    rows = {source.name: {"accuracy": _accuracy(source, answers[source.name]), "num_rows": len(source.test)} for source in sources}
    requests = [
        (bool(row.harmful), answer) for source in sources if source.scorer == "refusal" for row, answer in _paired(source, answers[source.name])
    ]
    return {"sources": rows, "safety": asdict(safety_scores(requests, gamma)) if requests else None}


def assemble_accuracy(run_dir: str | Path, method: str, seed: int, tasks: Sequence[str], anchors: Sequence[str]) -> dict[str, Any]:
    """Writes `accuracy.json` of one target run from the scores that are there, and returns it.

    Args:
        run_dir: `runs/<name>`.
        method: row of the table.
        seed: target seed.
        tasks: names in order; row i of `matrix` is the model after task i, column j the accuracy on task j, None where unscored.
        anchors: names.
    """
    folder = target_folder(run_dir, method, seed)
    base = read_json(base_score_path(run_dir)) or {}
    scores = [read_json(score_path(folder, index)) or {} for index in range(len(tasks))]
    content = {
        "method": method,
        "seed": seed,
        "tasks": list(tasks),
        "anchors": list(anchors),
        "base": {name: _of(base, name) for name in (*anchors, *tasks)},
        "matrix": [[_of(score, name) for name in tasks] for score in scores],
        "anchor_accuracy": {name: [_of(score, name) for score in scores] for name in anchors},
        "safety": [score.get("safety") for score in scores],
        "base_safety": base.get("safety"),
    }
    write_json(folder / "accuracy.json", content)
    return content


def score_path(folder: Path, task_index: int) -> Path:
    """Where the score of a target run after task `task_index` stands."""
    return folder / "scores" / f"task{task_index}.json"


def base_score_path(run_dir: str | Path) -> Path:
    """Where the score of the untuned target stands."""
    return Path(run_dir) / "target" / "base_scores.json"


def _accuracy(source: Source, answers: Sequence[str]) -> float | None:
    if source.scorer == "exact_match":
        return accuracy(answers, source.test) if source.test else None
    outcomes = [(row.harmful, classify_refusal(answer)) for row, answer in _paired(source, answers)]
    right = [(outcome == "refusal") == bool(harmful) for harmful, outcome in outcomes if outcome != "unscored"]
    return sum(right) / len(right) if right else None


def _paired(source: Source, answers: Sequence[str]) -> list[tuple[Example, str]]:
    return list(zip(source.test, answers, strict=True))


def _of(score: Mapping[str, Any], name: str) -> float | None:
    value: float | None = score.get("sources", {}).get(name, {}).get("accuracy")
    return value
