"""The target, tuned by every method on Ray Train; ProxyMix asks the served controller at every stage boundary."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from cluster.evaluation import EvaluationPool
from cluster.session import ray_session
from cluster.tuning import tune_targets, tuning_progress
from jobs.check_mirroring import check_mirroring
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from jobs.serve_controller import check_service, serving
from jobs.train_controller import train_controller
from proxymix.cases import load_sources
from proxymix.config import Config
from proxymix.controllers.baselines import DeclaredFallback, UniformReplay, baseline
from proxymix.types import Controller
from services.client import ServiceController

PROXYMIX = "proxymix"


def controller_for(config: Config, url: str | None, gate: str | None, method: str, seed: int) -> Controller:
    """What decides the mixtures of one target run; called where the run is tuned.

    Args:
        config: of the run.
        url: of the controller service; None when the gate is shut.
        gate: why the controller must not be trusted; None when it may.
        method: row of the table.
        seed: target seed.
    """
    if method != PROXYMIX:
        return baseline(method)
    fallback = UniformReplay(config.transfer.fallback.replay_share)
    if gate is not None or url is None:
        return DeclaredFallback(fallback, gate or "no controller service")
    return ServiceController(url, config.service, run=f"{config.name}/{method}/seed{seed}", fallback=fallback)


def tune_target(run: Run, target_base: str, url: str | None, gate: str | None, pool: EvaluationPool) -> None:
    """Every method with every seed; checkpoints are scored by `pool` while the next task is already being tuned."""
    config = run.config
    assignments = [(method, seed) for seed in config.seeds for method in config.methods]
    choose: Callable[[str, int], Controller] = partial(controller_for, config, url, gate)
    pool.start(run.folder, assignments)
    with run.phase("tune_target"), run.progress("target stages") as update:
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(run, assignments, update, done), daemon=True)
        watcher.start()
        try:
            tune_targets(config, assignments, base_folder=target_base, run_dir=str(run.folder), controller_for=choose, name=f"{config.name}-target")
        finally:
            done.set()
            watcher.join()


def prepared_gate(verdict: dict[str, Any]) -> str | None:
    """Why the controller may not be used; None when mirroring holds."""
    return None if verdict["passed"] else "mirroring: " + "; ".join(verdict["reasons"])


def _watch(run: Run, assignments: list[tuple[str, int]], update: Callable[[int, int], None], done: threading.Event) -> None:
    while not done.wait(1.0):
        update(*tuning_progress(run.config, run.folder, assignments))


def job(run: Run) -> None:
    """Stand-alone: all that tuning needs, then tuning and scoring."""
    config = run.config
    sources = load_sources(config)
    with ray_session(config):
        if PROXYMIX in config.methods:
            check_service(run)
        bases = pretrain_base(run)
        gate = prepared_gate(check_mirroring(run, bases)) if PROXYMIX in config.methods else None
        served = PROXYMIX in config.methods and gate is None
        if served and config.service.url is None:
            train_controller(run, bases[0])
        with EvaluationPool(config, bases[1], sources) as pool, serving(run) if served else nullcontext() as url:
            tune_target(run, bases[1], url, gate, pool)
            pool.finish()


if __name__ == "__main__":
    launch(job)
