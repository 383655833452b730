"""The rates that `jobs.plan` counts with, out of what a finished run wrote down.

    runs/<name>/ → target/*/*/decisions.jsonl, controller/learning_curve.jsonl, scores → Rates

Tokens are those of rows, padding not counted: a plan counts every row at its longest, so its hours stay upper bounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from proxymix.artifacts import read_json, read_jsonl
from proxymix.config import load_config
from proxymix.errors import UserError
from proxymix.planning.work import Rates


def measured_rates(folder: Path) -> Rates:
    """Of the run in `folder`; what it did not do (learn a controller, score) has no rate.

    Raises:
        UserError: there is no run, or it tuned nothing.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"--rates: {str(folder)!r} must be the folder of a run, or a YAML file of rates; got a folder without config.yaml")
    config = load_config(folder / "config.yaml")
    stages = [row for path in sorted(folder.glob("target/*/*/decisions.jsonl")) for row in read_jsonl(path)]
    iterations = list(read_jsonl(folder / "controller" / "learning_curve.jsonl"))
    tuned = _rate((_tokens(row), row["seconds"]["train"] + row["seconds"]["validate"]) for row in stages)
    if tuned is None:
        raise UserError(f"--rates: {str(folder)!r} must hold a run that tuned its target, got one without decisions; run jobs.pipeline first")
    proxies = _rate((_tokens(row), row["sample_seconds"]) for row in iterations)
    written = config.evaluation.max_new_tokens
    scores = [read_json(path) for path in sorted(folder.glob("target/*/*/scores/*.json"))]
    answered = _rate((written * _rows(score), score["seconds"]["generate"]) for score in scores if score and "seconds" in score)
    return Rates(
        measured_by=f"run {config.name} in {folder}",
        target_tokens_per_s=tuned / config.target.parallelism.num_workers,
        proxy_tokens_per_s=proxies and proxies / max(1, config.started_env_runners),
        generated_tokens_per_s=answered,
    )


def _rate(parts: Iterable[tuple[float, float]]) -> float | None:
    """Of (number, seconds); None where nothing was done."""
    pairs = list(parts)
    number, seconds = (sum(values) for values in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return number / seconds if number and seconds else None


def _tokens(row: Mapping[str, Any]) -> float:
    return float(row["num_tokens"] + row["num_validation_tokens"])


def _rows(score: Mapping[str, Any]) -> int:
    """Test rows that were answered. Their answers may end early; a plan counts them at their longest, as here."""
    return sum(int(source["num_rows"]) for source in score["sources"].values())
