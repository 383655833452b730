"""The page itself: everything inline, nothing fetched, light or dark as the reader has it.

RunData → sections → report.html.j2 → report.html + plots/*.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxymix.artifacts import write_text
from proxymix.errors import UserError
from proxymix.report.run_data import RunData, read_run
from proxymix.report.sections import Section, sections
from proxymix.report.theme import save_png, svg
from proxymix.report.verdict import verdict
from proxymix.table import COLUMNS, Column, anchor_columns, best_methods, cell, fallback_mark, method_title, over_seeds

UNITS = (("B", 1e9), ("M", 1e6), ("k", 1e3))


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` and `plots/*.png` into the run folder, however far the run got.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: there is no such folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"run: the folder must exist, got {str(run_dir)!r}; pass the folder of a run that has been started")
    data = read_run(run_dir)
    plotted = sections(data)
    _save_plots(plotted, run_dir / "plots")
    path = run_dir / "report.html"
    write_text(path, render(data, plotted))
    return path


def _save_plots(plotted: list[Section], folder: Path) -> None:
    """One PNG per panel; a panel that an earlier report had and this one has not goes, files of other hands stay."""
    for section in plotted:
        written = {folder / f"{panel.name}.png": panel.figure for panel in section.panels}
        for path, figure in written.items():
            save_png(figure, path)
        earlier = {path for pattern in (f"{section.key}.png", f"{section.key}-*.png") for path in folder.glob(pattern)}
        for path in earlier - written.keys():
            path.unlink()


def render(data: RunData, plotted: list[Section]) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("proxymix.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.j2").render(
        name=data.config.get("name", data.folder.name),
        facts=_facts(data),
        verdict=verdict(data.metrics),
        table=_table(data.metrics) if data.metrics else None,
        sections=[{"key": s.key, "title": s.title, "text": s.text, "missing": s.missing, "figures": _figures(s)} for s in plotted],
        config=data.config_text,
        manifest=json.dumps(_settled(data.manifest), indent=2, ensure_ascii=False) if data.manifest else None,
    )


def _figures(section: Section) -> list[Markup]:
    # The SVG is our own drawing; matplotlib escapes the names written into it.
    return [Markup(svg(panel.figure, panel.name, panel.alt)) for panel in section.panels]


def _table(metrics: dict[str, Any]) -> dict[str, Any]:
    columns: tuple[Column, ...] = COLUMNS + anchor_columns(metrics)
    best = {column: best_methods(column, metrics) for column in columns}
    rows = [
        {
            "method": method,
            "title": method_title(method),
            "fallback": fallback_mark(row),
            "cells": [{"key": c.key, "text": cell(c, row.get(c.key)), "best": method in best[c]} for c in columns],
        }
        for method, row in metrics["methods"].items()
    ]
    return {"columns": columns, "rows": rows, "seeds": over_seeds(metrics)}


def _facts(data: RunData) -> list[str]:
    """What kind of run this is, in a few words each."""
    manifest, sizes = _settled(data.manifest or {}), data.num_parameters
    facts = [f"{len(data.tasks)} tasks" if data.tasks else "", f"{len(data.anchors)} anchors" if data.anchors else ""]
    facts += [f"{model} {_count(sizes[model])} parameters" for model in ("proxy", "target") if model in sizes]
    facts += [f"revision {str(manifest['git_revision'])[:10]}" if manifest.get("git_revision") else "", str(manifest.get("status") or "")]
    return [fact for fact in facts if fact]


def _settled(manifest: dict[str, Any]) -> dict[str, Any]:
    """Without the status `running`: the report is written by the run itself, so there it says nothing."""
    return {key: value for key, value in manifest.items() if (key, value) != ("status", "running")}


def _count(number: int) -> str:
    return next((f"{number / size:.3g} {unit}" for unit, size in UNITS if number >= size), str(number))
