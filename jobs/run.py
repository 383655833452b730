"""One run as a job sees it: the config, its folder, its phases and its progress.

Run.open(config) → run.phase("train_controller") → run.progress(…) → events.jsonl, manifest.json
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from proxymix.artifacts import read_json, write_json, write_text
from proxymix.config import Config
from proxymix.errors import UserError

RECORDED_PACKAGES = ("ray", "torch", "transformers", "datasets", "gymnasium", "numpy", "pydantic", "safetensors", "proxymix")
RESUMABLE = {"methods", "seeds", "service", "resources", "name", "runs_root", "cache_root"}
"""Config keys that may change between two calls of the same run; they change no result that is already there."""


class Run:
    """A run folder and what is said about it."""

    def __init__(self, config: Config, console: Console) -> None:
        """Use `open`."""
        self.config, self.console, self.folder = config, console, config.run_dir

    @classmethod
    def open(cls, config: Config) -> Run:
        """The run's folder, made or gone on with.

        Raises:
            UserError: the folder holds a run with another config.
        """
        config = config.model_copy(
            update={
                "runs_root": str(Path(config.runs_root).resolve()),
                "cache_root": str(Path(config.cache_root).resolve()),
                "data_root": config.data_root and str(Path(config.data_root).resolve()),
            }
        )
        run = cls(config, Console(stderr=True))
        written = run.folder / "config.yaml"
        tree = config.model_dump(mode="json")
        if written.exists():
            before = yaml.safe_load(written.read_text())
            changed = sorted(key for key in tree if key not in RESUMABLE and before.get(key) != tree[key])
            if changed:
                raise UserError(
                    f"name: run {str(run.folder)!r} was begun with another {', '.join(changed)}; give it another name or remove the folder"
                )
        write_text(written, yaml.safe_dump(tree, sort_keys=False))
        run.set_status("running")
        return run

    def set_status(self, status: str) -> None:
        """`running`, `finished`, `failed` or `interrupted`, in `manifest.json` with all that made the run."""
        write_json(
            self.folder / "manifest.json",
            {
                "name": self.config.name,
                "status": status,
                "seed": self.config.seed,
                "versions": {package: version(package) for package in RECORDED_PACKAGES},
                "git_revision": _git_revision(),
                "hardware": {
                    "machine": platform.machine(),
                    "cores": os.cpu_count(),
                    "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
                },
            },
        )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A named stretch of the run, timed in `events.jsonl` whether it ends well or not."""
        self._event(name, "start")
        started, ending = time.perf_counter(), "failed"
        try:
            yield
            ending = "end"
        finally:
            self._event(name, ending, seconds=round(time.perf_counter() - started, 3))

    @contextmanager
    def progress(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar with an estimate of the time left; yields `update(done, total)`."""
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=32),
            TextColumn("{task.completed:>5.0f}/{task.total:<5.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=False) as bars:
            task = bars.add_task(title, total=1)
            last = [0]

            def update(done: int, total: int) -> None:
                bars.update(task, completed=done, total=max(total, 1))
                # Without a terminal there are no moving bars: a line every tenth keeps a log readable.
                if not self.console.is_terminal and total and done * 10 // total > last[0]:
                    last[0] = done * 10 // total
                    self.console.print(f"{title}: {done}/{total}")

            yield update
            bars.update(task, completed=bars.tasks[0].total)

    def say(self, text: str) -> None:
        """A line for the person watching."""
        self.console.print(text, highlight=False)

    def read(self, name: str) -> Any:
        """A JSON file of the run folder; None if it is not there."""
        return read_json(self.folder / name)

    def _event(self, phase: str, event: str, **facts: Any) -> None:
        row = {"time": round(time.time(), 3), "phase": phase, "event": event, **facts}
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def _git_revision() -> str | None:
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
