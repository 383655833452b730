"""The frozen controller behind HTTP on Ray Serve, until Ctrl-C."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cluster.session import ray_session, spare_cores
from jobs.entry import launch
from jobs.run import Run
from jobs.train_controller import take_given
from proxymix.config import ServiceConfig
from services.client import bearer_token, check_reachable
from services.deployment import claim_port, deploy, start_serve, undeploy


def check_service(run: Run) -> None:
    """What would stop the run at its first decision stops it now.

    Raises:
        UserError: the given service does not answer, the token is missing, or the port is taken.
    """
    service = run.config.service
    if service.url is not None:
        check_reachable(service.url, service)
    else:
        bearer_token(service)
        claim_port(service)


@dataclass(frozen=True)
class Served:
    """A controller that answers."""

    url: str
    sha256: str
    """Of its weights; a target run that began with it accepts no other."""
    token: str | None = None
    """What it asks for. Read once, here: a worker elsewhere does not have the driver's environment."""


@contextmanager
def serve_starting(run: Run) -> Iterator[None]:
    """Ray Serve starts, yet without a controller, beside what is done in this context; where no core is spare, `serving` starts it later.

    Why it could not start is told by `serving` too, which tries again. If the context fails, Serve goes with it.
    """
    service, seconds = run.config.service, 0.0
    if service.url is not None or spare_cores(run.config) < 1:
        yield
        return

    def start() -> None:
        nonlocal seconds
        began = time.perf_counter()
        with suppress(Exception):
            start_serve(service)
            seconds = time.perf_counter() - began

    thread = threading.Thread(target=start, name="serve-start", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        thread.join()
        undeploy(run.app)
        raise
    thread.join()
    if seconds:
        run.meanwhile("start_serve", seconds)


@contextmanager
def serving(run: Run, route_prefix: str | None = None) -> Iterator[Served]:
    """The controller that answers: the one at `service.url`, or a deployment of the run's own that lives as long as this context.

    Args:
        run: whose controller it is.
        route_prefix: where a deployment answers; None: beneath a path that no other run of the cluster has.
    """
    service = run.config.service
    if service.url is not None:
        yield _served(service.url, service)
        return
    with run.phase("serve_controller"):
        url = deploy(run.folder / "controller", service, run.app, route_prefix=route_prefix or f"/{run.app}")
    run.say(f"controller served at {url}")
    try:
        yield _served(url, service)
    finally:
        undeploy(run.app)


def _served(url: str, service: ServiceConfig) -> Served:
    return Served(url, check_reachable(url, service).sha256, bearer_token(service))


def job(run: Run) -> None:
    """Stand-alone: serve the run's controller, or the given one."""
    take_given(run)
    with ray_session(run.config):
        check_service(run)
        with serving(run, "/") as served:
            serve_forever(run, served.url)


def serve_forever(run: Run, url: str) -> None:
    """Until Ctrl-C."""
    run.say(f"{url}/docs  ·  Ctrl-C to stop")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    launch(job)
