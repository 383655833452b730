"""The evidence to look at: how far ProxyMix is from every row, and what each row pays in forgetting for what it knows.

metrics.json of the benchmark → plot_differences (a row a method) | plot_trade_off (a point a method) → Figure
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from proxymix.benchmark_rows import Family, family, notes, row_title
from proxymix.report.theme import ACCENT, GRID, HUES, INK, MUTED, PAPER, PNG_DPI, styled

COLOURS: Mapping[Family, str] = {"proxymix": ACCENT, "rival": HUES[3], "control": HUES[2], "oracle": MUTED}
MEANINGS: Mapping[Family, str] = {"proxymix": "ProxyMix", "rival": "rival", "control": "control", "oracle": "oracle, no rival"}
ROW, EDGE = 0.2, 0.1
"""Inches: a method; free at the edge."""


@styled
def plot_differences(metrics: Mapping[str, Any]) -> Figure:
    """ProxyMix's J minus each row's over shared cases, with its 95 % interval; a hollow point is of some cases only, and says how many."""
    rows = {method: row for method, row in metrics["methods"].items() if "J" in row["reference_minus"]}
    order = sorted(rows, key=lambda method: -rows[method]["reference_minus"]["J"]["mean"])
    height, foot = 1.05 + ROW * len(order), notes(order)
    figure, axes = _axes((7.4, height + 0.16 * len(foot) + 0.35), left=2.0, right=1.65, top=0.78, bottom=0.65 + 0.16 * len(foot))
    _head(figure, "ProxyMix minus each method, paired", "J, percentage points, mean and 95 % interval; right of 0: ProxyMix is better")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlim(_window([100 * row["reference_minus"]["J"][part] for row in rows.values() for part in ("low", "high")]))
    for place, method in enumerate(order):
        _draw_difference(axes, place, method, rows[method], partial=rows[method]["num_cases"] < len(metrics["cases"]))
    axes.set(ylim=(len(order) - 0.5, -0.5), xlabel="percentage points of J")
    axes.set_yticks(range(len(order)), [row_title(method) for method in order], color=INK)
    axes.grid(axis="x")
    _legend(axes, [family(method) for method in order])
    for index, note in enumerate(reversed(foot)):
        figure.text(EDGE / figure.get_figwidth(), (EDGE + 0.16 * index) / figure.get_figheight(), note, fontsize=7, color=MUTED)
    return figure


@styled
def plot_trade_off(metrics: Mapping[str, Any]) -> Figure:
    """Final accuracy against forgetting, a point a method that stands for every case; the random shares on their line."""
    total = len(metrics["cases"])
    points = {
        method: (100 * row["mean"]["FGT"]["mean"], 100 * row["mean"]["AA"]["mean"])
        for method, row in metrics["methods"].items()
        if row["num_cases"] == total and row["mean"]["FGT"] and row["mean"]["AA"]
    }
    xs, ys = (_window([point[axis] for point in points.values()]) for axis in (0, 1))
    inside = {method: point for method, point in points.items() if xs[0] <= point[0] <= xs[1] and ys[0] <= point[1] <= ys[1]}
    outside = ", ".join(f"{row_title(method)} ({x:.0f}, {y:.0f})" for method, (x, y) in points.items() if method not in inside)
    figure, axes = _axes((7.6, 6.4), left=0.55, right=0.2, top=0.8, bottom=0.75)
    _head(figure, "What is known at the end, and what was forgotten", f"AA against FGT, percent, means over {total} paired cases; best: top left")
    if outside:
        figure.text(EDGE / figure.get_figwidth(), EDGE / figure.get_figheight(), f"Outside: {outside}", va="bottom", fontsize=7, color=MUTED)
    shares = sorted((float(method.removeprefix("random_")), method) for method in points if _is_share(method))
    line = [points[method] for method in [*(["no_replay"] if "no_replay" in points else []), *(method for _, method in shares)]]
    if len(line) > 1:
        axes.plot(*zip(*line, strict=True), color=COLOURS["rival"], linewidth=1, alpha=0.45, zorder=1)
    for method, (forgotten, known) in inside.items():
        own = method == metrics["reference"]
        axes.plot(forgotten, known, "o", markersize=9 if own else 5, color=COLOURS[family(method)], markeredgecolor=PAPER, zorder=3 + own)
    axes.set(xlim=xs, ylim=ys, xlabel="FGT: mean drop from a task's best to its final accuracy, percent")
    axes.grid()
    _legend(axes, [family(method) for method in inside])
    _label_points(axes, inside, metrics["reference"])
    return figure


_SMALL: Mapping[str, Any] = {"va": "center", "fontsize": 7, "color": MUTED}


def _draw_difference(axes: Axes, place: int, method: str, row: Mapping[str, Any], *, partial: bool) -> None:
    """Point, interval and numbers of one method; a row far off becomes an arrow at the edge, so that it does not squeeze all others."""
    colour = COLOURS[family(method)]
    mean, low, high = (100 * row["reference_minus"]["J"][part] for part in ("mean", "low", "high"))
    if place % 2:
        axes.axhspan(place - 0.5, place + 0.5, color=GRID, alpha=0.45, linewidth=0, zorder=0)
    axes.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="round")
    shown = float(np.clip(mean, *axes.get_xlim()))
    marker = "o" if shown == mean else ">" if mean > shown else "<"
    face = PAPER if partial else colour
    axes.plot(shown, place, marker, markersize=5, markerfacecolor=face, markeredgecolor=colour, markeredgewidth=1.3, clip_on=False, zorder=3)
    of = f", n = {row['num_cases']}" if partial else ""
    axes.text(1.02, place, f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]{of}".replace("-", "−"), transform=axes.get_yaxis_transform(), **_SMALL)


def _axes(size: tuple[float, float], *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """Margins in inches."""
    width, height = size
    figure = Figure(figsize=size, dpi=PNG_DPI)
    FigureCanvasAgg(figure)  # It knows how large a text will be.
    return figure, figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def _head(figure: Figure, title: str, unit: str) -> None:
    left, height = EDGE / figure.get_figwidth(), figure.get_figheight()
    figure.text(left, 1 - EDGE / height, title, va="top", fontsize=10.5, fontweight="bold")
    figure.text(left, 1 - (EDGE + 0.21) / height, unit, va="top", fontsize=8, color=MUTED)


def _legend(axes: Axes, families: Sequence[Family]) -> None:
    """Of the colours that occur, above the axes."""
    handles = [Line2D([], [], marker="o", linestyle="", color=COLOURS[kind], label=MEANINGS[kind]) for kind in COLOURS if kind in families]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 0.997), ncols=len(handles), fontsize=8, handletextpad=0.1, columnspacing=1.2
    )


def _window(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis that show all values but those far from the rest (by Tukey's outer fences)."""
    low, high = np.percentile(values, [25, 75])
    reach = 3 * max(high - low, 0.5)
    kept = [value for value in values if low - reach <= value <= high + reach]
    margin = 0.08 * max(max(kept) - min(kept), 0.5)
    return min(kept) - margin, max(kept) + margin


def _is_share(method: str) -> bool:
    return method.startswith("random_") and method.removeprefix("random_").replace(".", "", 1).isdigit()


def _label_points(axes: Axes, points: Mapping[str, tuple[float, float]], bold: str) -> None:
    """Every name where it hides no point and no other name, as near to its own point as there is room; farther ones are tied to it by a line."""
    renderer, scale = axes.figure.canvas.get_renderer(), axes.figure.dpi / 72  # type: ignore[attr-defined]
    centres = {method: axes.transData.transform(point) for method, point in points.items()}
    taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in centres.values()]
    for method in sorted(points, key=lambda name: (name != bold, -centres[name][1])):
        text = axes.annotate(row_title(method), points[method], fontsize=7.5, fontweight="bold" if method == bold else "normal", zorder=5)
        box = _free_place(centres[method], text.get_window_extent(renderer), axes.get_window_extent(renderer), taken, scale)
        taken.append(box)
        text.remove()
        corner, size = np.array([box.x0, box.y0]), np.array([box.width, box.height])
        nearest = np.clip((centres[method] - corner) / size, 0, 1)
        far = np.hypot(*(corner + nearest * size - centres[method])) > 9 * scale
        axes.annotate(
            text.get_text(),
            points[method],
            (corner - centres[method]) / scale,
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": nearest} if far else None,
            fontproperties=text.get_fontproperties(),
            va="bottom",
            zorder=5,
        )


def _free_place(centre: NDArray[np.float64], label: Bbox, frame: Bbox, taken: Sequence[Bbox], scale: float) -> Bbox:
    """The nearest box of the label's size, within the frame if there is one, that lies over the least of what is taken."""
    boxes = [Bbox.from_bounds(*corner, label.width, label.height) for corner in _places(centre[0], centre[1], label.width, label.height, scale)]
    inside = [box for box in boxes if frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1]
    return min(inside or boxes, key=lambda box: sum(_overlap(box, other) for other in taken))


def _places(x: float, y: float, width: float, height: float, scale: float) -> Iterator[tuple[float, float]]:
    """Lower left corners of a label round its point, the nearest first."""
    for distance in np.arange(6, 180, 4) * scale:
        for angle in np.deg2rad([0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90]):
            yield x + distance * np.cos(angle) - width * (1 - np.cos(angle)) / 2, y + distance * np.sin(angle) - height / 2


def _overlap(box: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(box, other)
    return both.width * both.height if both is not None else 0.0
