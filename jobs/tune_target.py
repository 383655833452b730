"""The target, tuned by every method on Ray Train; ProxyMix asks the served controller at every stage boundary."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from cluster.evaluation import EvaluationPool
from cluster.session import ray_session
from cluster.target_runs import TargetRuns
from cluster.tuning import tuning_progress
from jobs.calibrate_guard import calibrate_guard
from jobs.check_mirroring import check_mirroring
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from jobs.serve_controller import Served, check_service, serve_starting, serving
from jobs.train_controller import check_given, train_controller
from proxymix.cases import load_sources
from proxymix.checkpoints import check_storage
from proxymix.config import PROXYMIX, Config
from proxymix.controllers.baselines import DeclaredFallback, UniformReplay
from proxymix.errors import UserError
from proxymix.guard import Guard, GuardedController
from proxymix.planning.checks import check_models
from proxymix.tracking import check_tracker
from proxymix.types import Controller, Source
from services.client import ServiceController


def controller_for(config: Config, served: Served | None, gate: str | None, guard: Guard | None, seed: int, sha256: str | None) -> Controller:
    """What decides the mixtures of one of ProxyMix's target runs; called where the run is tuned.

    Args:
        config: of the run.
        served: the controller service; None when the gate is shut.
        gate: why the controller must not be trusted; None when it may.
        guard: watches the run; None when nobody does.
        seed: target seed.
        sha256: of the controller that the run began with, before it was interrupted; no other may go on with it. None: it begins now.
    """
    fallback = UniformReplay(config.transfer.fallback.replay_share)
    if served is None:
        return DeclaredFallback(fallback, gate or "no controller service")
    run, sha256 = f"{config.name}/{PROXYMIX}/seed{seed}", sha256 or served.sha256
    controller = ServiceController(served.url, config.service, run=run, fallback=fallback, sha256=sha256, token=served.token)
    return controller if guard is None else GuardedController(controller, guard, fallback)


@contextmanager
def tuned_targets(run: Run, sources: list[Source]) -> Iterator[EvaluationPool]:
    """All that tuning needs, then tuning; yields the pool that scores the checkpoints, most of them scored already.

    The pool's engines start while the controller is being learnt, and so does Ray Serve where a core is free for it. Where more are free, the target
    is tuned meanwhile by the methods that ask no controller; else Ray Train starts beside the service. Needs a connected Ray.
    """
    config, steered = run.config, PROXYMIX in run.config.methods
    check_tracker(config.tracking)
    check_models(config)
    check_storage(config.target.checkpoints.storage)
    if steered:
        check_given(config)
        check_service(run)
    bases = pretrain_base(run)
    assignments = [(method, seed) for seed in config.seeds for method in config.methods]
    with EvaluationPool(config, bases[1], sources) as pool, TargetRuns(config, bases[1], str(run.folder), assignments) as targets:
        gate = None
        if steered:
            verdict = check_mirroring(run, bases)
            gate = None if verdict["passed"] else "mirroring: " + "; ".join(verdict["reasons"])
        asks = steered and gate is None
        pool.start(run.folder, targets.assignments)
        if asks and config.service.url is None:
            with serve_starting(run):
                if targets.has_room:
                    targets.begin()
                train_controller(run, bases[0])
        if not (asks and config.transfer.guard.enabled and config.proxy.use_gpu):  # Else the guard's proxies need the workers' GPUs first.
            targets.begin()
        with serving(run) if asks else nullcontext() as served:
            guard = None
            if served is not None and config.transfer.guard.enabled:
                guard = calibrate_guard(run, bases[0], served)
            if ahead := targets.steer(partial(controller_for, config, served, gate, guard)):
                run.meanwhile("tune_ahead", ahead)
            _wait(run, targets, pool)
        yield pool


def _wait(run: Run, targets: TargetRuns, pool: EvaluationPool) -> None:
    """Until every method has been tuned with every seed; checkpoints are scored while the next task is already being tuned."""
    warned = False
    with targets, run.phase("tune_target"), run.progress("target stages") as update:  # Interrupted, tuning stops before the service does.
        while not targets.wait(1.0):
            update(*tuning_progress(run.config, run.folder, targets.assignments))
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
