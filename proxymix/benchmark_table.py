"""The benchmark's table: every method over all paired cases, and how far the learnt controller is from each row.

    results per (method, case) → benchmark_metrics → metrics.json → write_table → table.md, differences.png, trade_off.png
    python -m proxymix.benchmark_table runs/benchmark/benchmark/metrics.json                                 the last step alone

A case is a sequence and a seed; methods are run on a case with the same base, steps, samples and data stream.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import ArrayLike
from scipy.stats import bootstrap

from proxymix.artifacts import write_text
from proxymix.benchmark_rows import notes, row_title
from proxymix.errors import UserError
from proxymix.metrics import mean_and_error
from proxymix.report.benchmark_plots import plot_differences, plot_trade_off
from proxymix.report.theme import save_png
from proxymix.reward import final_score
from proxymix.summary import scores

MEASURES = ("AA", "FGT", "NTA", "BWT", "RA", "BC", "SS", "J", "replay_share", "policy_cost", "total_cost")
COMPARED = ("AA", "FGT", "SS", "J")
UNIT = "random_30"
"""What a random-replay target run costs is this row's cost on the same case."""
RESAMPLES = 9999
Measures = Mapping[str, float | None]
"""Of one method on one case."""


def case_measures(result: Mapping[str, Any], policy_flops: int, unit_flops: int) -> dict[str, float | None]:
    """One method on one case.

    Args:
        result: of `jobs.accounted_runs`.
        policy_flops: what having the controller cost; 0 for a rule.
        unit_flops: of the random-replay run of the same case.

    Returns:
        MEASURES: fractions, and costs in random-replay target runs. J is the mean over tasks and anchors at the end.
    """
    report = result["report"]
    final = dict(zip(report["tasks"], report["matrix"][-1], strict=True)) | {name: series[-1] for name, series in report["anchor_accuracy"].items()}
    policy = policy_flops / unit_flops
    own = {"J": final_score(final), "replay_share": result["replay_share"], "policy_cost": policy}
    measured = {**scores(report), **own, "total_cost": policy + result["flops"] / unit_flops}
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


def benchmark_metrics(cases: Sequence[str], measures: Mapping[str, Sequence[Measures | None]], reference: str) -> dict[str, Any]:
    """The content of `metrics.json`.

    Args:
        cases: names, `<sequence>/seed<k>`.
        measures: per method, one entry a case, in their order; None where it does not stand for that case.
        reference: method that the others are compared with; it stands for every case.

    Returns:
        `{"cases", "reference", "methods"}`, and per method `num_cases`, `per_case` (a list a measure, None where the method does not stand),
        `mean` (`{"mean", "se"}` a measure, over its own cases) and `reference_minus` (`{"mean", "low", "high"}` a compared measure, over the cases
        that both have). A measure that some case of a method lacks has None for its mean, and is not compared.
    """
    methods = {}
    for method, rows in measures.items():
        own = [row for row in rows if row is not None]
        beside = [other for other, row in zip(measures[reference], rows, strict=True) if row is not None and other is not None]
        known, reference_known = _known(own), _known(beside)
        shared = [name for name in COMPARED if name in known and name in reference_known and method != reference]
        methods[method] = {
            "num_cases": len(own),
            "per_case": {name: [row and row[name] for row in rows] for name in MEASURES},
            "mean": {name: _mean(known[name]) if name in known else None for name in MEASURES},
            "reference_minus": {name: paired_difference(reference_known[name], known[name]) for name in shared},
        }
    return {"cases": list(cases), "reference": reference, "methods": methods}


def benchmark_markdown(metrics: Mapping[str, Any]) -> str:
    """`metrics.json` as tables for people: the methods that stand for all cases by their J, the best first; then those that stand for some.

    The means of the second table are of other cases than those of the first, so only its differences, over shared cases, compare.
    """
    how = "percent, mean ± standard error; differences with 95 % bootstrap intervals; costs in random-replay target runs"
    total, methods = len(metrics["cases"]), metrics["methods"]
    everywhere = {method: row for method, row in methods.items() if row["num_cases"] == total}
    somewhere = {method: row for method, row in methods.items() if row["num_cases"] < total}
    lines = [f"{total} paired cases; {how}.", "", *_lines(everywhere, metrics["reference"], with_cases=False)]
    if somewhere:
        lines += ["", "On some of the cases only; means are over a row's own cases, differences over the same cases of both.", ""]
        lines += _lines(somewhere, metrics["reference"], with_cases=True)
    lines += [line for note in notes(methods) for line in ("", note)]
    return "\n".join(lines) + "\n"


def write_table(metrics: Mapping[str, Any], folder: Path) -> None:
    """`table.md` and the plots of `metrics`, into `folder`."""
    write_text(folder / "table.md", benchmark_markdown(metrics))
    save_png(plot_differences(metrics), folder / "differences.png")
    save_png(plot_trade_off(metrics), folder / "trade_off.png")


def _lines(rows: Mapping[str, Any], reference: str, *, with_cases: bool) -> list[str]:
    shown = [*(name for name in MEASURES if name != "replay_share"), "replay_share"]
    head = ["method", *(["cases"] if with_cases else []), *(name.replace("replay_share", "replay").replace("_", " ") for name in shown)]
    head += [f"{row_title(reference)} − it: {name}" for name in COMPARED]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for method, row in sorted(rows.items(), key=lambda item: -item[1]["mean"]["J"]["mean"]):
        cells = [_cell(name, row["mean"][name]) for name in shown] + [difference_cell(row["reference_minus"].get(name)) for name in COMPARED]
        title = f"**{row_title(method)}**" if method == reference else row_title(method)
        lines.append("| " + " | ".join([title, *([str(row["num_cases"])] if with_cases else []), *cells]) + " |")
    return lines


def _known(rows: Sequence[Measures]) -> dict[str, list[float]]:
    """The measures that every case has."""
    columns = {name: [value for row in rows if (value := row[name]) is not None] for name in MEASURES}
    return {name: column for name, column in columns.items() if len(column) == len(rows) > 0}


def _mean(column: Sequence[float]) -> dict[str, float]:
    mean, error = mean_and_error(column)
    return {"mean": mean, "se": error if len(column) > 1 else 0.0}


def _cell(name: str, entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "–"
    if name.endswith("_cost"):
        return f"{entry['mean']:.2f}"
    return f"{100 * entry['mean']:.1f} ± {100 * entry['se']:.1f}".replace("-", "−")


def difference_cell(entry: Mapping[str, float] | None) -> str:
    """A paired difference in percent points with its interval, as a table's cell; empty where there is none."""
    if entry is None:
        return ""
    return f"{100 * entry['mean']:+.1f} [{100 * entry['low']:+.1f}, {100 * entry['high']:+.1f}]".replace("-", "−")


def main(metrics: Annotated[Path, typer.Argument(help="metrics.json of a benchmark; table and plots go beside it.")]) -> None:
    """Writes table.md and the plots anew."""
    try:
        write_table(json.loads(metrics.read_text(encoding="utf-8")), metrics.parent)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"metrics: must be the metrics.json of a benchmark, got {str(metrics)!r} ({error})") from error


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as fault:
        sys.exit(f"error: {fault}")
