"""The guard of the target runs: what the proxy's losses do under the served controller, fitted into `guard.json`."""

from __future__ import annotations

from functools import partial
from typing import Any

from cluster.guard_runs import run_guard_cases
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from jobs.serve_controller import Served, check_service, serving
from jobs.train_controller import train_controller
from proxymix.artifacts import write_json
from proxymix.cases import draw_cases
from proxymix.config import Config
from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.guard import FEATURES, Guard, fit_guard
from services.client import ServiceController


def calibrate_guard(run: Run, proxy_base: str, served: Served) -> Guard:
    """The guard of the run, fitted now unless it was for this very controller.

    Raises:
        UserError: the proxy's runs are too short for `transfer.guard`, or the service was away.
    """
    config, kept = run.config, run.read("guard.json")
    if kept is None or kept["controller_sha256"] != served.sha256 or kept["features"] != list(FEATURES):
        kept = {"controller_sha256": served.sha256, **_fitted(run, proxy_base, served).to_json()}
        write_json(run.folder / "guard.json", kept)
    guard = Guard.from_json(kept)
    run.say(f"guard: falls back below ρ = {guard.bound:.2f} over {guard.window} stages, learnt from {config.transfer.guard.num_runs} proxy runs")
    return guard


def _fitted(run: Run, proxy_base: str, served: Served) -> Guard:
    config, settings = run.config, run.config.transfer.guard
    cases = draw_cases(config.controller.curriculum, config.tuning, settings.num_runs, config.seed, label="guard")
    steer = partial(_served_controller, config, served)
    with run.phase("calibrate_guard"), run.progress("guard (proxy runs)") as update:
        runs = run_guard_cases(config, proxy_base, cases, steer, served.sha256, run.account, update)
    rule: dict[str, Any] = {"bound": settings.min_rank_correlation, "false_alarms": settings.false_alarms}
    try:
        return fit_guard(runs, window=settings.window, min_readings=settings.min_readings, **rule)
    except ValueError as error:
        raise UserError(f"transfer.guard: {error}") from error


def _served_controller(config: Config, served: Served) -> ServiceController:
    fallback = UniformReplay(config.transfer.fallback.replay_share)
    return ServiceController(served.url, config.service, run=f"{config.name}/guard", fallback=fallback, sha256=served.sha256, token=served.token)


def job(run: Run) -> None:
    """Stand-alone: proxy base, controller, service, guard."""
    with ray_session(run.config):
        check_service(run)
        base = pretrain_base(run)[0]
        if run.config.service.url is None:
            train_controller(run, base)
        with serving(run) as served:
            calibrate_guard(run, base, served)


if __name__ == "__main__":
    launch(job)
