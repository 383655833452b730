"""The ablation as a table for people: what each variant reaches, and what the full controller is ahead of it.

metrics per case → ablation.json → ablation_markdown → table.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from proxymix.ablation_config import FULL
from proxymix.ablation_rows import row_title
from proxymix.benchmark_table import MEASURES, difference_cell

DIFFERENCES = ("J", "AA", "FGT", "SS")
SHOWN = (*DIFFERENCES, "replay_share")


def mean_measures(measures: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of one case over several controllers; None where one of them lacks it."""
    columns = {name: [row[name] for row in measures] for name in MEASURES}
    return {name: None if None in column else float(np.mean(np.array(column, dtype=np.float64))) for name, column in columns.items()}


def ablation_markdown(ablation: Mapping[str, Any]) -> str:
    """`ablation.json` for people: the variants in their order, then longer sequences."""
    cases, trainings = len(ablation["variants"]["cases"]), ablation["num_controllers"]
    how = (
        f"{cases} paired cases, {trainings} training{'s' * (trainings > 1)} a variant (a case's result is their mean); percent; differences with "
        "95 % bootstrap intervals over cases, which say nothing of how much trainings differ."
    )
    parts = [how, "", *_table(ablation["variants"], "variant")]
    for length, metrics in ablation["longer"].items():
        parts += ["", f"{length} tasks, not trained on such lengths; {len(metrics['cases'])} paired cases.", "", *_table(metrics, "controller")]
    return "\n".join(parts) + "\n"


def _table(metrics: Mapping[str, Any], first: str) -> list[str]:
    head = [first, *(name.replace("_share", "") for name in SHOWN), *(f"full − it: {name}" for name in DIFFERENCES)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row, found in metrics["methods"].items():
        values = [_value(found["mean"][name]) for name in SHOWN]
        differences = [difference_cell(found["reference_minus"].get(name)) for name in DIFFERENCES]
        title = f"**{row_title(row)}**" if row == FULL else row_title(row)
        lines.append("| " + " | ".join([title, *values, *differences]) + " |")
    return lines


def _value(entry: Mapping[str, float] | None) -> str:
    return "–" if entry is None else f"{100 * entry['mean']:.1f}".replace("-", "−")
