"""How every figure looks: colours, axes, direct labels, and the way to SVG and PNG.

    Figure → svg(...) inline, its neutral colours replaced by the page's CSS variables | save_png(...)

Figures are built on `matplotlib.figure.Figure`, never on pyplot, so nothing global is touched and no display is asked for.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1d2126", "#69727d", "#e4e7ea", "#fefefe"
_CSS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}

HUES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a63b0", "#9c6b1f")
"""Okabe and Ito's colours, told apart by people with any colour vision, and two more; without the two that vanish on paper."""
NEUTRALS = ("#6f8092", "#adb9c4")
"""Anchors are what stands still: grey, so that the tasks have the hues."""
ACCENT = HUES[0]
WARM = HUES[3]

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.5,
    "hatch.color": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "xtick.major.width": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "proxymix",
}
styled = matplotlib.rc_context(STYLE)
"""Decorator: whatever is drawn inside follows STYLE."""


def source_colours(anchors: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """One colour per source for the whole report."""
    extra = list(anchors[len(NEUTRALS) :])
    greys = dict(zip(anchors, NEUTRALS, strict=False))
    return greys | {name: HUES[index % len(HUES)] for index, name in enumerate([*tasks, *extra])}


PNG_DPI = 160
"""Dots per inch."""
WIDTH = 5.2
"""Of every panel, inches."""


def new_axes(
    title: str, unit: str, *, height: float = 3.1, left: float = 0.42, right: float = 1.25, top: float = 0.62, bottom: float = 0.42
) -> tuple[Figure, Axes]:
    """An empty panel. What the vertical axis shows stands level under the title, where it can be read; the box is fixed, so panels line up.

    Args:
        title: bold, at the panel's left edge.
        unit: quantity and unit of the vertical axis.
        height: of the panel, inches.
        left: this and the other margins of the axes' box, inches.
        right: see left; room for labels.
        top: see left; title and unit take 0.36.
        bottom: see left.
    """
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height))
    figure.text(0, 1 - 0.03 / height, title, va="top", fontsize=9.5, fontweight="bold")
    figure.text(0, 1 - 0.22 / height, unit, va="top", fontsize=8, color=MUTED)
    return figure, axes


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Names series at the right edge, where they end, instead of in a legend; labels that would touch are pushed apart.

    Args:
        axes: with its series drawn and its final y scale.
        labels: (y in data units, text, colour of the series).
    """
    gap = 11.5 * axes.figure.dpi / 72 / axes.get_window_extent().height
    ordered = sorted(labels)
    axes.autoscale_view()  # limits that nobody has set are only computed when asked for
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((0, y))[1]) for y, _, _ in ordered]  # fractions of the axes' height
    transform = axes.transAxes
    for (_, text, colour), y, place in zip(ordered, heights, spread(heights, gap, 0.0, 1.0), strict=True):
        axes.plot([1.008, 1.03, 1.05], [y, place, place], transform=transform, color=colour, linewidth=1.6, clip_on=False, solid_capstyle="round")
        axes.text(1.065, place, text, transform=transform, va="center", fontsize=8)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending `positions` moved apart to at least `gap`, as little as a push up and a push down from `high` need.

    >>> spread([0.0, 0.1, 5.0], 1.0, 0.0, 5.0)
    [0.0, 1.0, 5.0]
    """
    placed: list[float] = []
    for position in positions:
        placed.append(max(position, placed[-1] + gap) if placed else max(position, low))
    ceiling = max(high, low + gap * (len(placed) - 1))
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return placed


def mark_tasks(axes: Axes, starts: Sequence[float], end: float) -> None:
    """Thin lines where a task begins, its number above."""
    axes.set_xlim(0, end)
    for index, (start, stop) in enumerate(zip(starts, [*starts[1:], end], strict=True)):
        if index:
            axes.axvline(start, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
        axes.text(
            (start + stop) / 2,
            1.02,
            f"{'task ' if index == 0 else ''}{index + 1}",
            transform=axes.get_xaxis_transform(),
            ha="center",
            color=MUTED,
            fontsize=8,
        )


def svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an inline SVG element that follows the page's light or dark colours.

    Args:
        figure: drawn in STYLE.
        name: makes the ids inside unique within the page.
        alt: what the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Creator": None, "Date": None, "Format": None, "Type": None})
    text = re.sub(r"<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text[text.index("<svg") :])
    for colour, variable in _CSS.items():
        text = text.replace(colour, variable)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    quoted = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{quoted}" \1 xmlns:xlink="http://www.w3.org/1999/xlink">', text, count=1
    )


def save_png(figure: Figure, path: Path) -> None:
    """The figure as a PNG on white, at `PNG_DPI`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, format="png", dpi=PNG_DPI, metadata={"Software": None})
