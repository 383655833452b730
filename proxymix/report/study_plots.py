"""What the mirroring study found, drawn. Each function draws one figure.

mirroring_study.json → Figure
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

from proxymix.report.theme import HUES, INK, MUTED, WIDTH, styled

Study = Mapping[str, Any]
ROW = 0.27
"""Height of a row, inches."""
LEFT, PANEL, SPACE = 0.85, 2.1, 0.32
"""Left margin, a scatter panel with the space to the next, that space; inches."""


@styled
def plot_study_rho(study: Study) -> Figure:
    """ρ with its interval for every pair and rate, between its null and its ceiling."""
    pairs = _pairs(study)
    heights = [ROW * (len(results) + 0.9) for results in pairs.values()]
    height = sum(heights) + 1.2
    figure = Figure(figsize=(WIDTH + 1.2, height))
    axes = figure.add_axes((1.75 / (WIDTH + 1.2), 0.45 / height, 1 - 2.35 / (WIDTH + 1.2), 1 - 1.2 / height))
    figure.text(0.05 / WIDTH, 1 - 0.05 / height, "Do small models forget what large ones forget?", va="top", fontsize=9.5, fontweight="bold")
    unit = "Spearman's ρ between proxy and target forgetting; bar: 95 % interval"
    figure.text(0.05 / WIDTH, 1 - 0.24 / height, unit, va="top", fontsize=8, color=MUTED)
    y, ticks, labels = 0.0, [], []
    for index, (pair, results) in enumerate(pairs.items()):
        axes.text(-0.02, y + 0.1, pair, transform=axes.get_yaxis_transform(), ha="right", va="center", fontweight="bold")
        for row, result in enumerate(results, start=1):
            _draw_rho(axes, y + row, result, HUES[index % len(HUES)])
            ticks.append(y + row)
            labels.append(f"learning rate ×{result['rate']:g}")
        y += len(results) + 0.9
    axes.set_yticks(ticks, labels)
    lowest = min(0.0, *(value for result in study["results"] for value in (result["interval"][0], result["null_rho"] or 0.0)))
    axes.set(xlim=(lowest - 0.02, 1.0), ylim=(y - 0.4, -0.6), xlabel="ρ")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    _rho_key(axes)
    return figure


def _draw_rho(axes: Axes, y: float, result: Mapping[str, Any], colour: str) -> None:
    axes.hlines(y, *result["interval"], color=colour, linewidth=2.6, alpha=0.85, capstyle="round")
    axes.scatter(result["rho"], y, s=40, color=colour, zorder=4, edgecolor="white", linewidth=0.8)
    axes.scatter(result["partial_rho"], y, s=26, marker="D", facecolor="white", edgecolor=colour, linewidth=1.1, zorder=3)
    if result["ceiling"] is not None:
        axes.scatter(result["ceiling"], y, s=75, marker="|", color=INK, linewidth=1.6, zorder=3)
    if result["null_rho"] is not None:
        axes.scatter(result["null_rho"], y, s=26, marker="x", color=MUTED, linewidth=1.2, zorder=3)
    axes.text(1.025, y, f"{result['rho']:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _rho_key(axes: Axes) -> None:
    """What the marks mean, in one line above the axes."""
    marks: list[tuple[str, dict[str, Any]]] = [
        ("ρ", {"marker": "o", "color": MUTED, "markersize": 6}),
        ("age held fixed", {"marker": "D", "markerfacecolor": "white", "color": MUTED, "markersize": 4.5}),
        ("null: another order", {"marker": "x", "color": MUTED, "markersize": 5}),
        ("ceiling: target, other seed", {"marker": "|", "color": INK, "markersize": 8, "markeredgewidth": 1.6}),
    ]
    for label, style in marks:
        axes.plot([], [], linestyle="", label=label, **style)
    axes.legend(loc="lower right", bbox_to_anchor=(1.08, 1.0), ncols=4, fontsize=8, handletextpad=0.1, columnspacing=1.0, borderaxespad=0.2)


@styled
def plot_study_scatter(study: Study) -> Figure:
    """φ of proxy against φ of target: a row a pair, a column a rate; every point is a pair of tasks in one sequence and seed."""
    pairs = _pairs(study)
    columns = max(len(results) for results in pairs.values())
    width, height = max(LEFT + columns * PANEL, WIDTH), len(pairs) * PANEL + 1.0
    figure = Figure(figsize=(width, height))
    figure.text(0.05 / width, 1 - 0.05 / height, "Relative forgetting, pair of tasks by pair of tasks", va="top", fontsize=9.5, fontweight="bold")
    unit = "φ: share of a task's accuracy lost by the end of a later task; a colour a sequence"
    figure.text(0.05 / width, 1 - 0.24 / height, unit, va="top", fontsize=8, color=MUTED)
    limits = _phi_limits(study)
    for row, (pair, results) in enumerate(pairs.items()):
        for column, result in enumerate(results):
            left, bottom = LEFT + column * PANEL, height - 0.55 - (row + 1) * PANEL
            axes = figure.add_axes((left / width, bottom / height, (PANEL - SPACE) / width, (PANEL - SPACE) / height))
            _draw_scatter(axes, result, limits)
            _frame(axes, pair, first=column == 0, last=row == len(pairs) - 1)
    return figure


def _draw_scatter(axes: Axes, result: Mapping[str, Any], limits: tuple[float, float]) -> None:
    names = list(result["per_sequence"])
    for index, name in enumerate(names):
        pilots = [pilot for pilot in result["pilots"] if pilot["sequence"] == name]
        proxy, target = (np.clip(np.concatenate([pilot[model] for pilot in pilots]), *limits) for model in ("proxy", "target"))
        axes.scatter(proxy, target, s=11, color=HUES[index % len(HUES)], alpha=0.6, linewidth=0, clip_on=False)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    axes.text(0, 1.03, f"learning rate ×{result['rate']:g}", transform=axes.transAxes, fontsize=8.5, color=MUTED)
    axes.text(1, 1.03, f"ρ {result['rho']:.2f}".replace("-", "−"), transform=axes.transAxes, ha="right", fontweight="bold", fontsize=8.5)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.grid()


def _frame(axes: Axes, pair: str, *, first: bool, last: bool) -> None:
    """Numbers and names only along the outer edges."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(0.25))
        axis.set_major_formatter(PercentFormatter(1, symbol=""))
    if last:
        axes.set_xlabel("φ of the proxy, percent")
    else:
        axes.tick_params(labelbottom=False)
    if first:
        axes.set_ylabel("φ of the target, percent")
        axes.text(-0.36, 0.5, pair, transform=axes.transAxes, rotation=90, ha="center", va="center", fontweight="bold")
    else:
        axes.tick_params(labelleft=False)


def _phi_limits(study: Study) -> tuple[float, float]:
    """From just below the first percentile of φ, so that one pair that got better does not squeeze the rest; what lies beyond sits on the edge."""
    values = np.concatenate([pilot[model] for result in study["results"] for pilot in result["pilots"] for model in ("proxy", "target")])
    lowest = np.quantile(values, 0.01) if values.size else 0.0  # Models that learn nothing have nothing to forget.
    return float(min(-0.05, lowest - 0.03)), 1.05


def _pairs(study: Study) -> dict[str, list[Mapping[str, Any]]]:
    """Results by pair, in their order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in study["results"]:
        found.setdefault(f"{result['proxy']} → {result['target']}", []).append(result)
    return found
