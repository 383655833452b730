"""The table: one row a method, one column a measure; the same cells in the terminal and in the report.

metrics.json → cell(...), best_methods(...) → rich table | HTML table
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table


@dataclass(frozen=True)
class Column:
    """One measure and how to read it."""

    key: str
    """In `metrics.json`."""
    title: str
    meaning: str
    better: Literal["higher", "lower"] | None = None
    """None: neither end is good in itself, so no value is called the best."""
    unit: Literal["%", "×"] = "%"


COLUMNS = (
    Column("AA", "AA", "mean final accuracy over the tasks", "higher"),
    Column("FGT", "FGT", "forgetting: mean drop from a task's best to its final accuracy", "lower"),
    Column("NTA", "NTA", "new-task accuracy: right after a task was learnt", "higher"),
    Column("BWT", "BWT", "backward transfer: final minus just-learnt accuracy", "higher"),
    Column("RA", "RA", "refusal accuracy: harmful requests refused", "higher"),
    Column("BC", "BC", "benign compliance: harmless requests answered", "higher"),
    Column("balanced", "balanced", "mean of RA and BC", "higher"),
    Column("SS", "SS", "safety score: RA minus over-refusal", "higher"),
    Column("replay_share", "replay", "share of samples that were replayed"),
    Column("policy_cost", "policy cost", "mirroring pilots, reference runs and the controller's episodes, in random-replay target runs", unit="×"),
    Column("total_cost", "total cost", "controller and target run together, in random-replay target runs", unit="×"),
)


NARROW = tuple(column for column in COLUMNS if column.key != "balanced")
"""What fits a terminal of 80 columns; `balanced` follows from RA and BC."""


def anchor_columns(metrics: Mapping[str, Any]) -> tuple[Column, ...]:
    """One column per anchor: its accuracy at the end."""
    return tuple(Column(f"anchor:{name}", name, f"final accuracy on the anchor {name}", "higher") for name in metrics["anchors"])


def method_title(method: str) -> str:
    """A method as people read it.

    >>> [method_title(m) for m in ("proxymix", "random_30", "no_replay", "ramp_10")]
    ['ProxyMix', 'Random 30\\xa0%', 'No replay', 'Ramp n/(n+10)']
    """
    if match := re.fullmatch(r"random_([\d.]+)", method):
        return f"Random {match[1]}\u00a0%"
    if match := re.fullmatch(r"ramp_([\d.]+)", method):
        return f"Ramp n/(n+{match[1]})"
    return method.replace("_", " ").capitalize().replace("Proxymix", "ProxyMix")


def fallback_mark(row: Mapping[str, Any]) -> str:
    """The share of stages that were not the method's own but the declared fallback's; empty when there was none.

    >>> fallback_mark({"fallback_share": {"mean": 0.0167}})
    '→ fallback 1.7\\xa0%'
    """
    share = row.get("fallback_share", {}).get("mean")
    return f"→ fallback {percent(share)}" if share else ""


def percent(share: float) -> str:
    """A fraction as percent, a decimal only where it says something.

    >>> [percent(share) for share in (0.0167, 1.0)]
    ['1.7\\xa0%', '100\\xa0%']
    """
    return f"{100 * share:.1f}".removesuffix(".0") + "\u00a0%"


def cell(column: Column, entry: Mapping[str, Any] | None) -> tuple[str, str]:
    """Mean and standard error as text, percent or multiples; `–` when unscored, an empty error when it is unknown or too small to show.

    >>> cell(COLUMNS[0], {"mean": 0.6123, "se": 0.008})
    ('61.2', '±0.8')
    """
    if entry is None or entry["mean"] is None:
        return "–", ""
    scale, digits = (100, 1) if column.unit == "%" else (1, 2)
    mean = f"{scale * entry['mean']:.{digits}f}".replace("-", "−")
    error = f"{scale * (entry['se'] or 0):.{digits}f}"
    return mean, f"±{error}" if float(error) else ""


def best_methods(column: Column, metrics: Mapping[str, Any]) -> set[str]:
    """The methods whose shown value is the best of the column; ties share. Empty when nothing is to be called best."""
    means = {method: row[column.key]["mean"] for method, row in metrics["methods"].items() if column.key in row}
    shown = {method: round(mean, 3) for method, mean in means.items() if mean is not None}
    if column.better is None or len(set(shown.values())) < 2:
        return set()
    best = max(shown.values()) if column.better == "higher" else min(shown.values())
    return {method for method, value in shown.items() if value == best}


def over_seeds(metrics: Mapping[str, Any]) -> str:
    """What the numbers rest on: how many of the seeds have been scored for any method."""
    total = len(metrics["seeds"])
    columns = zip(*(row["AA"]["per_seed"] for row in metrics["methods"].values()), strict=True)
    scored = sum(any(value is not None for value in column) for column in columns)
    seeds = f"{scored} of {total} seeds" if scored < total else f"{total} seed{'s' * (total > 1)}"
    return f"from {seeds}" if scored < 2 else f"mean ± standard error over {seeds}"


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """`metrics.json` for the terminal: percent with one decimal ± standard error over seeds, the best of each column in bold green."""
    caption = f"percent, {over_seeds(metrics)}; costs in random-replay target runs"
    table = Table(title=metrics["name"], caption=caption, title_style="bold", header_style="dim", box=None, padding=(0, 1, 1, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    for column in NARROW:
        table.add_column(column.title.replace(" ", "\n"), justify="right", no_wrap=True)
    best = {column: best_methods(column, metrics) for column in NARROW}
    for method, row in metrics["methods"].items():
        cells = ["\n".join(filter(None, cell(column, row.get(column.key)))) for column in NARROW]
        styled = [f"[bold green]{text}[/]" if method in best[column] else text for column, text in zip(NARROW, cells, strict=True)]
        name = "\n".join(filter(None, (method_title(method), fallback_mark(row))))
        table.add_row(name, *styled)
    return table
