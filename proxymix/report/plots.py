"""What happened to the target: mixtures, losses, accuracies. Each function draws one panel.

TargetRun(s) + colours → Figure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, PercentFormatter
from numpy.typing import NDArray

from proxymix.report.run_data import Row, TargetRun
from proxymix.report.theme import ACCENT, GRID, INK, PAPER, label_right, mark_tasks, new_axes, styled

Colours = Mapping[str, str]
LOSS_TICKS = (0, 0.1, 0.5, 1, 2, 4, 6, 8, 12, 16)


@styled
def plot_mixtures(run: TargetRun, colours: Colours, tasks: Sequence[str], title: str) -> Figure:
    """Stacked weights of every source, constant within a stage; a stage tuned on the fallback mixture is hatched."""
    figure, axes = new_axes(title, "mixture weight, percent of each batch")
    floor = np.zeros(len(run.decisions))
    labels = []
    for name in run.sources:
        weights = np.array([row["weights"].get(name, 0.0) for row in run.decisions])  # [num_stages]
        axes.stairs(floor + weights, run.edges, baseline=floor, fill=True, color=colours[name], linewidth=0)
        axes.stairs(floor + weights, run.edges, baseline=None, color=PAPER, linewidth=0.8)
        labels.append((float(floor[-1] + weights[-1] / 2), _numbered(name, tasks), colours[name]))
        floor = floor + weights
    for start, stop, row in zip(run.edges, run.edges[1:], run.decisions, strict=False):
        if row["fallback"]:
            axes.add_patch(Rectangle((start, 0), stop - start, 1, facecolor="none", edgecolor=INK, hatch="////", hatchcolor=PAPER, linewidth=1.2))
    axes.set(ylim=(0, 1), xlabel="optimizer steps")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    mark_tasks(axes, run.task_starts, run.edges[-1])
    label_right(axes, labels)
    return figure


@styled
def plot_losses(run: TargetRun, colours: Colours, tasks: Sequence[str], title: str, ceiling: float) -> Figure:
    """Validation loss of every source at each decision; thick while the source is the current task.

    Args:
        run: with at least one decision.
        colours: per source.
        tasks: names in order, for their numbers.
        title: of the panel.
        ceiling: upper y limit, the same for panels that are to be compared.
    """
    figure, axes = new_axes(title, "validation loss, nats per answer token; square-root scale", left=0.3)
    labels = []
    for name in run.sources:
        readings = [
            (edge, s["losses"][-1], s["role"])
            for edge, row in zip(run.edges, run.decisions, strict=False)
            for s in row["sources"]
            if s["name"] == name and not s.get("age")  # a carried-over reading is no news
        ]
        steps, losses, roles = zip(*readings, strict=True)
        axes.plot(steps, losses, color=colours[name], linewidth=1.3)
        current = sum(role == "current" for role in roles)
        # One reading more: the stretch that ends a task was still tuned on it.
        axes.plot(
            steps[: current + 1 if current else 0],
            losses[: current + 1 if current else 0],
            color=colours[name],
            linewidth=3.2,
            solid_capstyle="round",
        )
        labels.append((losses[-1], _numbered(name, tasks), colours[name]))
    # Most losses end near 0, where a linear axis would lay them all on one line.
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axes.set(ylim=(0, ceiling), xlabel="optimizer steps")
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in LOSS_TICKS if tick <= ceiling]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(axis="y")
    mark_tasks(axes, run.task_starts, max(run.edges[-2], 1))
    label_right(axes, labels)
    return figure


def highest_loss(runs: Sequence[TargetRun]) -> float:
    """Where a common loss axis ends, nats per answer token."""
    losses = [source["losses"][-1] for run in runs for row in run.decisions for source in row["sources"]]
    return 1.05 * max(losses, default=1.0)


@styled
def plot_accuracy(runs: Sequence[TargetRun], title: str) -> Figure:
    """Mean accuracy over seeds: a row for the base and after each task, a column per anchor and task. What nobody scored is hatched."""
    reports = [run.accuracy for run in runs if run.accuracy and run.scored]
    anchors, tasks = reports[0]["anchors"], reports[0]["tasks"]
    columns, rows = [*anchors, *tasks], ["base", *(f"{i + 1} {name}" for i, name in enumerate(tasks))]
    grids = np.stack([_accuracy_grid(report) for report in reports])  # [num_seeds, num_rows, num_columns]
    counts = np.isfinite(grids).sum(axis=0)
    means = np.where(counts > 0, np.nansum(grids, axis=0) / np.maximum(counts, 1), np.nan)
    figure, axes = new_axes(
        title, "test accuracy in percent; row: after which task", height=1.15 + 0.29 * len(rows), left=1.1, right=0.4, top=1.05, bottom=0.1
    )
    for (row, column), value in np.ndenumerate(means):
        _draw_cell(axes, row, column, value, learnt_here=row > 0 and column == len(anchors) + row - 1)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=28, ha="left", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def _accuracy_grid(report: Row) -> NDArray[np.float64]:
    """`[1 + num_tasks, num_anchors + num_tasks]`, fractions, NaN where unscored."""
    anchors, tasks = report["anchors"], report["tasks"]
    before = [report["base"].get(name) for name in [*anchors, *tasks]]
    after = [[*(report["anchor_accuracy"][name][row] for name in anchors), *line] for row, line in enumerate(report["matrix"])]
    return np.array([before, *after], dtype=np.float64)


def _draw_cell(axes: Axes, row: int, column: int, value: float, *, learnt_here: bool) -> None:
    """Opacity is accuracy, so that 0 is the page itself, light or dark; the cell where a task was just learnt has a frame."""
    inset, size = 0.03, 0.94
    place = (column + inset, row + inset)
    if np.isnan(value):
        axes.add_patch(Rectangle(place, size, size, facecolor="none", edgecolor=GRID, hatch="////", linewidth=0))
        return
    axes.add_patch(Rectangle(place, size, size, facecolor=ACCENT, alpha=value, linewidth=0))
    if learnt_here:
        axes.add_patch(Rectangle(place, size, size, facecolor="none", edgecolor=INK, linewidth=0.9))
    axes.text(column + 0.5, row + 0.52, f"{100 * value:.0f}", ha="center", va="center", color="white" if value > 0.6 else INK, fontsize=8)


def _numbered(name: str, tasks: Sequence[str]) -> str:
    """A task with its place in the sequence; an anchor as it is."""
    return f"{tasks.index(name) + 1} {name}" if name in tasks else name
