"""The benchmark's table: every method over all paired cases, and how far the learnt controller is from each row.

results per (method, case) → benchmark_metrics → metrics.json → benchmark_markdown → table.md

A case is a sequence and a seed; every method has been run on every case with the same base, steps, samples and data stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from proxymix.metrics import mean_and_error
from proxymix.reward import final_score
from proxymix.summary import scores
from proxymix.table import method_title

MEASURES = ("AA", "FGT", "NTA", "BWT", "RA", "BC", "SS", "J", "replay_share", "policy_cost", "total_cost")
COMPARED = ("AA", "FGT", "SS", "J")
RESAMPLES = 9999


def case_measures(result: Mapping[str, Any], policy_flops: int, unit_flops: int) -> dict[str, float | None]:
    """One method on one case.

    Args:
        result: of `cluster.table_runs`.
        policy_flops: what having the controller cost; 0 for a rule.
        unit_flops: of the random-replay run of the same case.

    Returns:
        MEASURES: fractions, and costs in random-replay target runs. J is the mean over tasks and anchors at the end.
    """
    report = result["report"]
    final = dict(zip(report["tasks"], report["matrix"][-1], strict=True)) | {name: series[-1] for name, series in report["anchor_accuracy"].items()}
    policy = policy_flops / unit_flops
    own = {"J": final_score(final), "replay_share": result["replay_share"], "policy_cost": policy}
    measured = {**scores(report), **own, "total_cost": policy + result["cost"]["flops"] / unit_flops}
    return {name: measured[name] for name in MEASURES}


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> dict[str, float]:
    """Mean of first − second over cases, with its 95 % BCa bootstrap interval.

    >>> paired_difference([0.5, 0.7, 0.6], [0.4, 0.6, 0.5])["mean"]
    0.1
    """
    differences = np.subtract(first, second)
    mean = round(float(differences.mean()), 12)
    if len(differences) < 2 or np.ptp(differences) < 1e-12:  # Nothing to resample.
        return {"mean": mean, "low": mean, "high": mean}
    interval = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(seed)).confidence_interval
    return {"mean": mean, "low": float(interval.low), "high": float(interval.high)}


def benchmark_metrics(cases: Sequence[str], measures: Mapping[str, Sequence[Mapping[str, float | None]]], reference: str) -> dict[str, Any]:
    """The content of `metrics.json`.

    Args:
        cases: names, `<sequence>/seed<k>`.
        measures: per method, one entry a case, in their order.
        reference: method that the others are compared with.

    Returns:
        `{"cases", "reference", "methods"}`, and per method `per_case` (a list a measure), `mean` (`{"mean", "se"}` a measure) and `reference_minus`
        (`{"mean", "low", "high"}` a compared measure). A measure that some case lacks has None for its mean, and is not compared.
    """
    known = {method: _known(rows) for method, rows in measures.items()}
    methods = {}
    for method, rows in measures.items():
        shared = [name for name in COMPARED if name in known[method] and name in known[reference]]
        methods[method] = {
            "per_case": {name: [row[name] for row in rows] for name in MEASURES},
            "mean": {name: _mean(known[method][name]) if name in known[method] else None for name in MEASURES},
            "reference_minus": {name: paired_difference(known[reference][name], known[method][name]) for name in shared if method != reference},
        }
    return {"cases": list(cases), "reference": reference, "methods": methods}


def benchmark_markdown(metrics: Mapping[str, Any]) -> str:
    """`metrics.json` as a table for people, the methods by their J, the best first."""
    reference = metrics["reference"]
    head = [
        "method",
        *(name for name in MEASURES if name != "replay_share"),
        "replay",
        *(f"{method_title(reference)} − it: {name}" for name in COMPARED),
    ]
    how = "percent, mean ± standard error; differences with 95 % bootstrap intervals; costs in random-replay target runs"
    lines = [f"{len(metrics['cases'])} paired cases; {how}.", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    ranked = sorted(metrics["methods"].items(), key=lambda item: -item[1]["mean"]["J"]["mean"])
    for method, row in ranked:
        cells = [_cell(name, row["mean"][name]) for name in (*(m for m in MEASURES if m != "replay_share"), "replay_share")]
        cells += [_difference(row["reference_minus"].get(name)) for name in COMPARED]
        title = f"**{method_title(method)}**" if method == reference else method_title(method)
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _known(rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """The measures that every case has."""
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in MEASURES}
    return {name: column for name, column in columns.items() if len(column) == len(rows)}


def _mean(column: Sequence[float]) -> dict[str, float]:
    mean, error = mean_and_error(column)
    return {"mean": mean, "se": error if len(column) > 1 else 0.0}


def _cell(name: str, entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "–"
    if name.endswith("_cost"):
        return f"{entry['mean']:.2f}"
    return f"{100 * entry['mean']:.1f} ± {100 * entry['se']:.1f}".replace("-", "−")


def _difference(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return ""
    return f"{100 * entry['mean']:+.1f} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]".replace("-", "−")
