"""metrics.json: every method by every measure, mean, standard error and each seed.

    target/<method>/seed<k>/{accuracy.json, decisions.jsonl} + base/target.json + controller/controller.json → summarise → metrics.json

No wall-clock goes in: one seed, one summary. What was not scored is None and stays out of the means; it is never a zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxymix.artifacts import read_json, read_jsonl
from proxymix.config import Config
from proxymix.cost import forward_flops, training_flops
from proxymix.errors import UserError
from proxymix.metrics import continual_metrics, mean_and_error

CONTINUAL = ("AA", "FGT", "NTA", "BWT")
SAFETY = {"RA": "refusal_accuracy", "BC": "benign_compliance", "SS": "selectivity"}


def summarise(config: Config, run_dir: Path) -> dict[str, Any]:
    """The content of `metrics.json` for what has been scored so far.

    Accuracies are fractions; costs are in units of one random-replay target run (its FLOPs under the same seed). `policy_cost` is the controller's
    training, 0 for a baseline; `total_cost` adds the method's own target run.

    Returns:
        `{"name", "tasks", "anchors", "seeds", "methods": {method: {metric: {"mean", "se", "per_seed"}}}}`. `per_seed` follows `config.seeds`,
        with None where a seed is not scored; `se` is None with fewer than two scored seeds. A method without any scored seed is absent.

    Raises:
        UserError: nothing has been scored yet.
    """
    run_dir = Path(run_dir)
    found = {method: [read_json(run_dir / "target" / method / f"seed{seed}" / "accuracy.json") for seed in config.seeds] for method in config.methods}
    scored = {method: reports for method, reports in found.items() if any(reports)}
    if not scored:
        raise UserError(
            f"run {str(run_dir)!r}: accuracy.json must exist for at least one method, found none; run jobs.tune_target and jobs.evaluate first"
        )
    first = next(report for reports in scored.values() for report in reports if report)
    return {
        "name": config.name,
        "tasks": first["tasks"],
        "anchors": first["anchors"],
        "seeds": list(config.seeds),
        "methods": {method: _method_summary(config, run_dir, method, reports) for method, reports in scored.items()},
    }


def _method_summary(config: Config, run_dir: Path, method: str, reports: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    rows = []
    for seed, report in zip(config.seeds, reports, strict=True):
        rows.append({**scores(report), **_effort(config, run_dir, method, seed)} if report else {})
    metrics = dict.fromkeys(metric for row in rows for metric in row)
    return {metric: _over_seeds([row.get(metric) for row in rows]) for metric in metrics}


def scores(report: dict[str, Any]) -> dict[str, float | None]:
    """AA, FGT, NTA, BWT and, at the end of the run, RA, BC, SS and every anchor's accuracy, from one `accuracy.json`.

    The first four are None as long as a cell on or below the diagonal is unscored.
    """
    matrix = np.array(report["matrix"], dtype=np.float64)  # [num_tasks, num_tasks], null becomes NaN
    complete = bool(np.isfinite(matrix[np.tril_indices_from(matrix)]).all())
    values: dict[str, float | None] = {**continual_metrics(matrix)} if complete else dict.fromkeys(CONTINUAL)
    safety = (report.get("safety") or [None])[-1] or {}
    values |= {metric: safety.get(key) for metric, key in SAFETY.items()}
    return values | {f"anchor:{name}": series[-1] for name, series in report["anchor_accuracy"].items()}


def _effort(config: Config, run_dir: Path, method: str, seed: int) -> dict[str, float | None]:
    """Realised replay share, policy cost and total cost of one target run; None where a number it rests on is not recorded."""
    rows = _decisions(run_dir, method, seed)
    own = _tuning_flops(run_dir, rows)
    random_runs = (_decisions(run_dir, name, seed) for name in config.methods if name.startswith("random_"))
    unit = _tuning_flops(run_dir, next((run for run in random_runs if run), rows))
    policy = _policy_flops(run_dir) if method.startswith("proxymix") else 0
    policy_cost = None if policy is None else 0.0 if policy == 0 else policy / unit if unit else None
    total_cost = policy_cost + own / unit if own and unit and policy_cost is not None else None
    return {"replay_share": _replay_share(rows), "policy_cost": policy_cost, "total_cost": total_cost}


def _tuning_flops(run_dir: Path, rows: Sequence[dict[str, Any]]) -> int | None:
    """Training plus in-loop validation of a target run; None without decisions or parameter count."""
    base = read_json(run_dir / "base" / "target.json")
    if not rows or not base:
        return None
    trained, read = (sum(row.get(key, 0) for row in rows) for key in ("num_tokens", "num_validation_tokens"))
    return training_flops(base["num_parameters"], trained) + forward_flops(base["num_parameters"], read)


def _policy_flops(run_dir: Path) -> float | None:
    card = read_json(run_dir / "controller" / "controller.json") or {}
    flops = card.get("training_flops")
    return None if flops is None else float(flops)


def _replay_share(rows: Sequence[dict[str, Any]]) -> float | None:
    """Replayed samples over all samples of the run, as realised."""
    total = sum(sum(row["counts"].values()) for row in rows)
    current = sum(row["counts"][source["name"]] for row in rows for source in row["sources"] if source["role"] == "current")
    return 1.0 - current / total if total else None


def _decisions(run_dir: Path, method: str, seed: int) -> list[dict[str, Any]]:
    return list(read_jsonl(run_dir / "target" / method / f"seed{seed}" / "decisions.jsonl"))


def _over_seeds(per_seed: list[float | None]) -> dict[str, Any]:
    known = [value for value in per_seed if value is not None]
    if not known:
        return {"mean": None, "se": None, "per_seed": per_seed}
    mean, error = mean_and_error(known)
    return {"mean": mean, "se": error if len(known) > 1 else None, "per_seed": per_seed}
