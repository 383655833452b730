"""The target, tuned by every method on Ray Train; ProxyMix asks the served controller at every stage boundary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from cluster.evaluation import EvaluationPool
from cluster.session import ray_session
from cluster.tuning import tune_targets, tuning_progress
from jobs.calibrate_guard import calibrate_guard
from jobs.check_mirroring import check_mirroring
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from jobs.serve_controller import Served, check_service, serve_starting, serving
from jobs.train_controller import check_given, train_controller
from proxymix.cases import load_sources
from proxymix.config import PROXYMIX, Config
from proxymix.controllers.baselines import DeclaredFallback, UniformReplay, baseline
from proxymix.errors import UserError
from proxymix.guard import Guard, GuardedController
from proxymix.tracking import check_tracker
from proxymix.types import Controller, Source
from services.client import ServiceController

Assignments = list[tuple[str, int]]
"""(method, seed) of every target run."""


def controller_for(config: Config, served: Served | None, gate: str | None, guard: Guard | None, method: str, seed: int) -> Controller:
    """What decides the mixtures of one target run; called where the run is tuned.

    Args:
        config: of the run.
        served: the controller service; None when the gate is shut.
        gate: why the controller must not be trusted; None when it may.
        guard: watches the run; None when nobody does.
        method: row of the table.
        seed: target seed.
    """
    if method != PROXYMIX:
        return baseline(method)
    fallback = UniformReplay(config.transfer.fallback.replay_share)
    if served is None:
        return DeclaredFallback(fallback, gate or "no controller service")
    run = f"{config.name}/{method}/seed{seed}"
    controller = ServiceController(served.url, config.service, run=run, fallback=fallback, sha256=served.sha256, token=served.token)
    return controller if guard is None else GuardedController(controller, guard, fallback)


@contextmanager
def tuned_targets(run: Run, sources: list[Source]) -> Iterator[EvaluationPool]:
    """All that tuning needs, then tuning; yields the pool that scores the checkpoints, most of them scored already.

    The pool's engines start while the controller is being learnt, and so does Ray Serve where a core is free for it. Needs a connected Ray.
    """
    config, steered = run.config, PROXYMIX in run.config.methods
    check_tracker(config.tracking)
    if steered:
        check_given(config)
        check_service(run)
    bases = pretrain_base(run)
    with EvaluationPool(config, bases[1], sources) as pool:
        gate = None
        if steered:
            verdict = check_mirroring(run, bases)
            gate = None if verdict["passed"] else "mirroring: " + "; ".join(verdict["reasons"])
        asks = steered and gate is None
        if asks and config.service.url is None:
            with serve_starting(run):
                train_controller(run, bases[0])
        with serving(run) if asks else nullcontext() as served:
            guard = None
            if served is not None and config.transfer.guard.enabled:
                guard = calibrate_guard(run, bases[0], served)
            _tune(run, bases[1], partial(controller_for, config, served, gate, guard), pool)
        yield pool


def _tune(run: Run, target_base: str, choose: Callable[[str, int], Controller], pool: EvaluationPool) -> None:
    """Every method with every seed; checkpoints are scored while the next task is already being tuned."""
    config = run.config
    assignments = [(method, seed) for seed in config.seeds for method in config.methods]
    pool.start(run.folder, assignments)
    with run.phase("tune_target"), run.progress("target stages") as update:
        done = threading.Event()
        watcher = threading.Thread(target=_watch, args=(run, assignments, pool, update, done), daemon=True)
        watcher.start()
        try:
            tune_targets(config, assignments, base_folder=target_base, run_dir=str(run.folder), controller_for=choose, name=f"{config.name}-target")
        finally:
            done.set()
            watcher.join()


def _watch(run: Run, assignments: Assignments, pool: EvaluationPool, update: Callable[[int, int], None], done: threading.Event) -> None:
    warned = False
    while not done.wait(1.0):
        update(*tuning_progress(run.config, run.folder, assignments))
        try:
            pool.check()
        except UserError as error:
            if not warned:
                run.say(f"no more scores for now: {error} (tuning goes on; its checkpoints wait)")
            warned = True


def job(run: Run) -> None:
    """Stand-alone: everything up to the last score."""
    sources = load_sources(run.config)
    with ray_session(run.config), tuned_targets(run, sources) as pool:
        pool.finish()


if __name__ == "__main__":
    launch(job)
