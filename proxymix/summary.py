"""metrics.json: every method by every measure, mean, standard error and each seed.

    target/<method>/seed<k>/{accuracy.json, decisions.jsonl} + costs.jsonl → summarise → metrics.json

No wall-clock goes in: one seed, one summary. What was not scored is None and stays out of the means; it is never a zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxymix.account import POLICY_ITEMS, Account, CostLine, of_policy, total_flops
from proxymix.artifacts import read_json, read_jsonl
from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.metrics import continual_metrics, mean_and_error

MEASURES = ("replay_share", "fallback_share", "policy_cost", "total_cost")
CONTINUAL = ("AA", "FGT", "NTA", "BWT")
SAFETY = {"RA": "refusal_accuracy", "BC": "benign_compliance", "balanced": "balanced", "SS": "selectivity"}


def summarise(config: Config, run_dir: Path) -> dict[str, Any]:
    """The content of `metrics.json` for what has been scored so far.

    Accuracies are fractions; costs are in units of one random-replay target run (its FLOPs under the same seed). `policy_cost` is all that
    having a controller took: mirroring pilots, reference runs, episodes, the sweep that found its settings; 0 for a baseline. `total_cost`
    adds the method's own target run. Both are from the account alone, which counts what a cache held as if it had been made now.
    `fallback_share` is the share of stages whose mixture was the declared fallback and not the method's own.

    Returns:
        `{"name", "tasks", "anchors", "seeds", "methods": {method: {metric: {"mean", "se", "per_seed"}}}}`. `per_seed` follows `config.seeds`,
        with None where a seed is not scored; `se` is None with fewer than two scored seeds. Every method and metric has an entry, scored or not.

    Raises:
        UserError: there is no `accuracy.json` at all.
    """
    run_dir = Path(run_dir)
    found = {method: [read_json(run_dir / "target" / method / f"seed{seed}" / "accuracy.json") for seed in config.seeds] for method in config.methods}
    first = next((report for reports in found.values() for report in reports if report), None)
    if first is None:
        raise UserError(
            f"run {str(run_dir)!r}: accuracy.json must exist for at least one method, found none; run jobs.tune_target and jobs.evaluate first"
        )
    return {
        "name": config.name,
        "tasks": first["tasks"],
        "anchors": first["anchors"],
        "seeds": list(config.seeds),
        "methods": {method: _method_summary(config, run_dir, method, reports, first["anchors"]) for method, reports in found.items()},
    }


def _method_summary(
    config: Config, run_dir: Path, method: str, reports: Sequence[dict[str, Any] | None], anchors: Sequence[str]
) -> dict[str, dict[str, Any]]:
    rows = []
    for seed, report in zip(config.seeds, reports, strict=True):
        rows.append({**scores(report), **_effort(config, run_dir, method, seed)} if report else {})
    metrics = (*CONTINUAL, *SAFETY, *(f"anchor:{name}" for name in anchors), *MEASURES)
    return {metric: _over_seeds([row.get(metric) for row in rows]) for metric in metrics}


def scores(report: dict[str, Any]) -> dict[str, float | None]:
    """AA, FGT, NTA, BWT and, at the end of the run, RA, BC, balanced, SS and every anchor's accuracy, from one `accuracy.json`.

    The first four are None as long as a cell on or below the diagonal is unscored.
    """
    matrix = np.array(report["matrix"], dtype=np.float64)  # [num_tasks, num_tasks], null becomes NaN
    complete = bool(np.isfinite(matrix[np.tril_indices_from(matrix)]).all())
    values: dict[str, float | None] = {**continual_metrics(matrix)} if complete else dict.fromkeys(CONTINUAL)
    safety = (report.get("safety") or [None])[-1] or {}
    values |= {metric: safety.get(key) for metric, key in SAFETY.items()}
    return values | {f"anchor:{name}": series[-1] for name, series in report["anchor_accuracy"].items()}


def _effort(config: Config, run_dir: Path, method: str, seed: int) -> dict[str, float | None]:
    """MEASURES of one target run; None where a number it rests on is not recorded."""
    rows, lines = _decisions(run_dir, method, seed), Account(run_dir / "costs.jsonl").made(*POLICY_ITEMS, "tuning")
    own = _tuning_flops(lines, method, seed, rows)
    random_runs = (_tuning_flops(lines, name, seed, _decisions(run_dir, name, seed)) for name in config.methods if name.startswith("random_"))
    unit = next((flops for flops in random_runs if flops), own)
    policy = _policy_flops(config, run_dir, lines) if method.startswith("proxymix") else 0
    policy_cost = None if policy is None else 0.0 if policy == 0 else policy / unit if unit else None
    total_cost = policy_cost + own / unit if own and unit and policy_cost is not None else None
    fallback_share = sum(row["fallback"] is not None for row in rows) / len(rows) if rows else None
    return dict(zip(MEASURES, (_replay_share(rows), fallback_share, policy_cost, total_cost), strict=True))


def _tuning_flops(lines: Sequence[CostLine], method: str, seed: int, rows: Sequence[dict[str, Any]]) -> int | None:
    """Training plus in-loop validation of a target run; None unless every stage is accounted for."""
    own = [line for line in lines if line.item == "tuning" and line.id.startswith(f"{method}/seed{seed}/")]
    return total_flops(own) if rows and len(own) == len(rows) else None


def _policy_flops(config: Config, run_dir: Path, lines: Sequence[CostLine]) -> int | None:
    """Pilots, reference runs, episodes and the sweep before them; None where there are no pilots, or the controller was learnt elsewhere."""
    policy = [line for line in lines if of_policy(line)]
    num_pilots, num_episodes = (sum(line.episodes for line in policy if line.item == item) for item in ("pilot", "episodes"))
    expected = config.controller.episodes if config.controller.path is None else num_episodes  # A given controller's one line says all.
    transferred = (read_json(run_dir / "mirroring.json") or {}).get("passed", False)
    return total_flops(policy) if num_pilots and (num_episodes == expected > 0 or not transferred) else None


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
