"""The controller service on Ray Serve: a thin shell round `services.app`.

    folder → N replicas, each loads the folder itself → one HTTP proxy on the head node → http://host:port

Nothing here knows HTTP routes, and nothing in `app` knows Ray.
"""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayActorError
from ray.serve.config import BackpressureConfig, HTTPOptions, ProxyLocation
from ray.serve.context import _disconnect, _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from proxymix.config import ServiceConfig
from proxymix.controllers.frozen import FrozenController
from proxymix.errors import UserError
from services.app import RETRY_AFTER_S, build_app
from services.client import bearer_token, check_reachable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_ONGOING_REQUESTS = 16
"""Per replica; a decision takes about a millisecond."""
MAX_QUEUED_REQUESTS = 64
"""At the proxy; one more is 503."""
RELEASE_S = 5.0
"""Patience with a port that is taken: the Serve of a run that has just ended may still be letting go of it."""


def deploy(
    controller_dir: str | Path, service: ServiceConfig, app_name: str = "proxymix", timeout_s: float = 120.0, *, route_prefix: str = "/"
) -> str:
    """Serve the frozen controller in `controller_dir`; returns the service's address once it answers.

    Needs a connected Ray. Deploying a second time under the same name replaces the first, replica by replica.

    Args:
        controller_dir: must be readable at the same path on every node.
        service: host, port, num_replicas, token_env.
        app_name: name of the Serve application.
        timeout_s: for everything until the first healthy answer, seconds.
        route_prefix: the application's path on the service's address; one cluster has one address for all its applications.

    Raises:
        UserError: the folder is no sound controller, the token is missing, the port is taken, or the service does not come up.
    """
    folder = Path(controller_dir).resolve()
    sha256 = FrozenController.load(folder).sha256  # A broken folder is told here in one line, not by a replica's log.
    token = bearer_token(service)
    if not ray.is_initialized():
        raise UserError("service: Ray is not connected; start or join a cluster before deploying")
    claim_port(service)
    deadline = time.monotonic() + timeout_s
    application = _deployment(folder, service.num_replicas, token).bind()
    target = serve.RunTarget(application, name=app_name, route_prefix=route_prefix)
    try:
        _start(target, service, deadline)
        url = f"http://{_reachable_host(service.host)}:{service.port}{route_prefix.rstrip('/')}"
        _wait_answering(url, service, sha256, deadline)
    except BaseException:  # Ctrl-C too: a deployment outlives the driver unless it is taken down.
        undeploy(app_name)
        raise
    return url


def start_serve(service: ServiceConfig) -> None:
    """Serve itself, its controller and its proxy, on the connected Ray; nothing to do where it runs already.

    Raises:
        UserError: the port is taken.
    """
    claim_port(service)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=service.host, port=service.port),
        logging_config=LoggingConfig(log_level="WARNING"),
    )


def _start(target: serve.RunTarget, service: ServiceConfig, deadline: float) -> None:
    """Until the application runs. Another run of the cluster may start Serve at the same moment, or take it down with its own; then once more."""
    while True:
        try:
            start_serve(service)
            serve.run_many([target], wait_for_applications_running=False)
            return _wait_running(target.name, deadline)
        except (ActorAlreadyExistsError, RayActorError) as error:
            if time.monotonic() > deadline:
                raise UserError(f"service: Ray Serve came and went until the time limit ({error}); is another program at it?") from error
            _disconnect()  # Else Serve goes on asking the controller that is gone.
            time.sleep(1)
        except RayServeException as error:
            raise UserError(
                f"service: this cluster already serves another application at {target.route_prefix} ({error}); set service.url to it, or stop it"
            ) from error


def undeploy(app_name: str = "proxymix", timeout_s: float = 60.0) -> None:
    """Take the application down; with the last one goes Serve itself, and the port is free again on return.

    Raises:
        TimeoutError: the port is still held after `timeout_s` seconds.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    http = client.http_config
    try:
        if app_name in serve.status().applications:
            serve.delete(app_name)
        if serve.status().applications:
            return
        serve.shutdown()
    except RayActorError:  # Another run took Serve down at the same moment.
        _disconnect()
    deadline = time.monotonic() + timeout_s
    while not _is_free(http.host, http.port) and _get_global_client(raise_if_no_controller_running=False) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"port {http.port} is still held {timeout_s:.0f} s after Serve was shut down")
        time.sleep(0.1)


def _deployment(folder: Path, num_replicas: int, token: str | None) -> serve.Deployment:
    # A nested function, not functools.partial: Serve takes a partial for the ASGI application itself and answers 500.
    # The token travels in this closure, not in runtime_env, where the dashboard would show it.
    def build() -> FastAPI:
        # Ray's own logger, so that the lines land in Serve's log files; not on the driver's console.
        log = logging.LoggerAdapter(logging.getLogger("ray.serve"), {"log_to_stderr": False})
        return build_app(FrozenController.load(folder), token=token, max_in_flight=MAX_ONGOING_REQUESTS, log=log)

    return serve.deployment(
        serve.ingress(build)(),
        name="controller",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=5,
        health_check_period_s=2,  # A lost replica is replaced within seconds, inside the client's patience.
        max_constructor_retry_count=3,
        logging_config=LoggingConfig(enable_access_log=False),  # The application writes its own line, with the request id.
    )


def claim_port(service: ServiceConfig) -> None:
    """Refuse a port that is not ours to use: Serve itself would start, and then answer nowhere.

    Raises:
        UserError: another program, or a Serve of this cluster on another address, is in the way.
    """
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes > 1 and service.host in LOOPBACK:
        raise UserError(
            f"service.host: must be reachable from all {nodes} nodes of the cluster, got {service.host!r}; set it to 0.0.0.0 and service.token_env, "
            "or serve the controller elsewhere and set service.url"
        )
    deadline = time.monotonic() + RELEASE_S
    while (client := _get_global_client(raise_if_no_controller_running=False)) is None and not _is_free(service.host, service.port):
        if time.monotonic() > deadline:
            raise UserError(f"service.port: {service.host}:{service.port} is taken by another program; set service.port to a free one")
        time.sleep(0.1)
    if client is not None:
        running = client.http_config
        if (running.host, running.port) != (service.host, service.port):
            raise UserError(
                f"service.port: Ray Serve of this cluster already listens on {running.host}:{running.port}, got {service.host}:{service.port}; "
                "use its address, or stop it with `serve shutdown`"
            )


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        # As a server would bind: connections lingering after a shutdown do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _reachable_host(host: str) -> str:
    return str(ray.util.get_node_ip_address()) if host == "0.0.0.0" else host


def _wait_running(app_name: str, deadline: float) -> None:
    while True:
        application = serve.status().applications.get(app_name)
        status = application.status.value if application else "NOT_STARTED"
        if status == "RUNNING":
            return
        message = application.message if application else ""
        if status == "DEPLOY_FAILED":
            raise UserError(f"service: the controller could not be deployed: {message}")
        if time.monotonic() > deadline:
            raise UserError(f"service: still {status} at the time limit ({message}); are 0.1 CPUs per replica free in the cluster?")
        time.sleep(0.1)


def _wait_answering(url: str, service: ServiceConfig, sha256: str | None, deadline: float) -> None:
    """Until the proxy routes to the new controller; when replacing one, the old may answer for a moment longer."""
    patient = service.model_copy(update={"retries": max(service.retries, 8)})
    while (found := check_reachable(url, patient).sha256) != sha256:
        if time.monotonic() > deadline:
            raise UserError(f"service: {url} still answers with controller {found}, expected {sha256}; undeploy it first")
        time.sleep(0.1)
