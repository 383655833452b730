"""What the ablation found, drawn: how far the full controller is ahead of each variant.

ablation.json → Figure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from proxymix.ablation_config import FULL
from proxymix.ablation_rows import row_title
from proxymix.report.theme import ACCENT, INK, MUTED, WARM, styled

Row = Mapping[str, Any]
PANELS = (("J", "score J", 1), ("AA", "final accuracy AA", 1), ("FGT", "forgetting avoided", -1), ("SS", "safety SS", 1))
"""Measure, title, and the sign that makes ahead be to the right."""
ROW, LEFT, PANEL, GAP = 0.25, 2.35, 1.45, 0.16
"""Inches."""


@styled
def plot_forest(ablation: Row) -> Figure:
    """A row a variant, a panel a measure: full minus variant with its 95 % interval, in points; then the rules on longer sequences."""
    blocks = [("Variants", _rows(ablation["variants"]))]
    blocks += [(f"{length} tasks", _rows(metrics)) for length, metrics in ablation["longer"].items()]
    lines = sum(len(rows) + 1.3 for _, rows in blocks)
    width, height = LEFT + len(PANELS) * (PANEL + GAP) + 0.1, ROW * lines + 1.25
    figure = Figure(figsize=(width, height))
    figure.text(0.05 / width, 1 - 0.05 / height, "What the controller needs", va="top", fontsize=9.5, fontweight="bold")
    unit = "full controller minus the row, percentage points; bar: 95 % bootstrap interval over paired cases; right of 0 the full one is better"
    figure.text(0.05 / width, 1 - 0.24 / height, unit, va="top", fontsize=8, color=MUTED)
    for index, (measure, title, sign) in enumerate(PANELS):
        left = LEFT + index * (PANEL + GAP)
        axes = figure.add_axes((left / width, 0.38 / height, PANEL / width, ROW * lines / height))
        axes.text(0.5, 1 + 0.08 / (ROW * lines), title, transform=axes.transAxes, ha="center", fontsize=8.5, color=INK)
        _draw_panel(axes, blocks, measure, sign, named=index == 0)
        axes.set_ylim(lines - 0.5, -0.5)
    return figure


def _rows(metrics: Row) -> list[tuple[str, Row]]:
    """Every row but the full one, by its title."""
    return [(row_title(row), found) for row, found in metrics["methods"].items() if row != FULL]


def _draw_panel(axes: Axes, blocks: Sequence[tuple[str, Sequence[tuple[str, Row]]]], measure: str, sign: int, *, named: bool) -> None:
    axes.axvline(0, color=MUTED, linewidth=0.8)
    y = 0.0
    ticks: list[float] = []
    for title, rows in blocks:
        if named:
            axes.text(-0.04, y, title, transform=axes.get_yaxis_transform(), ha="right", va="center", fontweight="bold")
        for place, (_, found) in enumerate(rows, start=1):
            ticks.append(y + place)
            _draw_difference(axes, y + place, found["reference_minus"].get(measure), sign)
        y += len(rows) + 1.3
    axes.set_yticks(ticks, [name for _, rows in blocks for name, _ in rows] if named else [""] * len(ticks))
    axes.tick_params(axis="y", labelcolor=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g}".replace("-", "−").replace("+0", "0"))
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _draw_difference(axes: Axes, y: float, entry: Row | None, sign: int) -> None:
    """Blue where the full one is surely ahead, orange where it is surely behind, grey where the cases cannot tell."""
    if entry is None:
        return
    low, high = sorted(100 * sign * entry[end] for end in ("low", "high"))
    colour = ACCENT if low > 0 else WARM if high < 0 else MUTED
    axes.hlines(y, low, high, color=colour, linewidth=2.2, alpha=0.75, capstyle="round")
    axes.scatter(100 * sign * entry["mean"], y, s=24, color=colour, zorder=3, edgecolor="white", linewidth=0.6)
