"""All that a run folder holds, read once; what is not there yet is None or empty.

runs/<name>/ → RunData
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from proxymix.account import Account
from proxymix.artifacts import read_json

Row = dict[str, Any]


@dataclass(frozen=True)
class TargetRun:
    """One method under one seed."""

    method: str
    seed: int
    decisions: list[Row]
    """Rows of `decisions.jsonl`, one per stage."""
    accuracy: Row | None
    """`accuracy.json`."""

    @cached_property
    def scored(self) -> bool:
        """Whether any accuracy of this run, beside the base's, is known."""
        report = self.accuracy or {"matrix": [], "anchor_accuracy": {}}
        return any(value is not None for row in (*report["matrix"], *report["anchor_accuracy"].values()) for value in row)

    @cached_property
    def edges(self) -> list[int]:
        """Optimizer steps at which each stage starts, and the last ends, `[num_stages + 1]`."""
        edges = [0]
        for row in self.decisions:
            edges.append(edges[-1] + row["num_optimizer_steps"])
        return edges

    @cached_property
    def task_starts(self) -> list[int]:
        """Optimizer steps at which each task begins."""
        return [edge for edge, row in zip(self.edges, self.decisions, strict=False) if row["stage_index"] == 0]

    @cached_property
    def sources(self) -> list[str]:
        """Every source that has become visible, in order."""
        return [source["name"] for source in self.decisions[-1]["sources"]] if self.decisions else []


@dataclass(frozen=True)
class RunData:
    """A run folder in memory."""

    folder: Path
    config_text: str | None
    manifest: Row | None
    metrics: Row | None
    mirroring: Row | None
    card: Row | None
    """`controller/controller.json`."""
    learning_curve: list[Row]
    events: list[Row]
    runs: list[TargetRun]
    """In the order of the config's methods, then seeds."""
    num_parameters: dict[str, int]
    """Of `proxy` and `target`, where known."""
    account: Account
    """`costs.jsonl`."""

    @cached_property
    def config(self) -> Row:
        """The resolved configuration as a plain tree; empty when absent."""
        tree = yaml.safe_load(self.config_text or "")
        return tree if isinstance(tree, dict) else {}

    @cached_property
    def methods(self) -> list[str]:
        """Methods that have left anything, in order."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @cached_property
    def anchors(self) -> list[str]:
        """Names of the anchors, as far as any run tells."""
        seen = [source["name"] for run in self.runs for row in run.decisions for source in row["sources"] if source["role"] == "anchor"]
        scored = [name for run in self.runs if run.accuracy for name in run.accuracy["anchors"]]
        return list(dict.fromkeys(scored + seen))

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks in order, as far as any run tells."""
        scored = [name for run in self.runs if run.accuracy for name in run.accuracy["tasks"]]
        names = dict.fromkeys(scored + [name for run in self.runs for name in run.sources])
        return [name for name in names if name not in self.anchors]

    def of_method(self, method: str) -> list[TargetRun]:
        """The runs of `method`, by seed."""
        return [run for run in self.runs if run.method == method]


def read_run(folder: Path) -> RunData:
    """The run in `folder`, however far it got."""
    config_file = folder / "config.yaml"
    config_text = config_file.read_text(encoding="utf-8") if config_file.exists() else None
    bases = {name: read_json(folder / "base" / f"{name}.json") for name in ("proxy", "target")}
    return RunData(
        folder=folder,
        config_text=config_text,
        manifest=read_json(folder / "manifest.json"),
        metrics=read_json(folder / "metrics.json"),
        mirroring=read_json(folder / "mirroring.json"),
        card=read_json(folder / "controller" / "controller.json"),
        learning_curve=read_rows(folder / "controller" / "learning_curve.jsonl"),
        events=read_rows(folder / "events.jsonl"),
        runs=_target_runs(folder, config_text),
        num_parameters={name: base["num_parameters"] for name, base in bases.items() if base and base.get("num_parameters")},
        account=Account(folder / "costs.jsonl"),
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; none without the file. A last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def _target_runs(folder: Path, config_text: str | None) -> list[TargetRun]:
    declared = (yaml.safe_load(config_text or "") or {}).get("methods", [])
    order = {method: index for index, method in enumerate(declared)}
    places = [(path.parent.name, int(path.name.removeprefix("seed")), path) for path in (folder / "target").glob("*/seed*")]
    places.sort(key=lambda place: (order.get(place[0], len(order)), place[0], place[1]))
    return [TargetRun(method, seed, read_rows(path / "decisions.jsonl"), read_json(path / "accuracy.json")) for method, seed, path in places]
