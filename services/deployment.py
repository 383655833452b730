"""The controller service on Ray Serve: a thin shell round `services.app`.

    folders → N replicas, each loads them itself → one HTTP proxy on the head node → http://host:port

Nothing in `app` knows Ray. A second `deploy` of other controllers is a config update that running replicas take over in place.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import ActorAlreadyExistsError, RayActorError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.context import _disconnect, _get_global_client
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from proxymix.controllers.frozen import SHIPPED
from proxymix.errors import UserError
from proxymix.service_config import LOOPBACK, ServedControllerConfig, ServiceConfig
from services.catalogue import CatalogueConfig, Entry, load_entries
from services.connection import AwayError, ServiceConnection
from services.replica import TARGET_ONGOING_REQUESTS, code_version, controller_deployment
from services.schemas import ControllerList
from services.token import bearer_token

PROXY_TIMEOUT_S = 20.0
"""The proxy's own limit on a request, behind the application's."""
HEAD = "node:__internal_head__"
"""Resource that only the head node has."""
RELEASE_S = 5.0
"""Patience with a port that is taken: the Serve of a run that has just ended may still be letting go of it."""


def deploy(
    controller_dir: str | Path, service: ServiceConfig, app_name: str = "proxymix", timeout_s: float = 120.0, *, route_prefix: str = "/"
) -> str:
    """Serve the frozen controller in `controller_dir`, and those of `service.controllers`; returns the service's address once it answers.

    Needs a connected Ray. A second time under the same name it replaces the controllers without restarting a replica or losing a request.

    Args:
        controller_dir: the default controller; must be readable at the same path on every node, or an fsspec URL.
        service: host, port, replicas, token, and further controllers.
        app_name: name of the Serve application.
        timeout_s: for everything until the first healthy answer, seconds.
        route_prefix: the application's path on the service's address; one cluster has one address for all its applications.

    Raises:
        UserError: the folder is no sound controller, the token is missing, the port is taken, or the service does not come up.
    """
    config = _catalogue_config(controller_dir, service)
    entries = load_entries(config)  # A broken folder is told here in one line, not by a replica's log.
    token = bearer_token(service)
    if not ray.is_initialized():
        raise UserError("service: Ray is not connected; start or join a cluster before deploying")
    claim_port(service)
    deadline = time.monotonic() + timeout_s
    target = serve.RunTarget(_application(config, service, token), name=app_name, route_prefix=route_prefix)
    is_update = _is_deployed(app_name)
    try:
        _start(target, service, deadline)
        url = f"http://{_reachable_host(service.host)}:{service.port}{route_prefix.rstrip('/')}"
        _wait_answering(url, service, entries, deadline)
    except BaseException:  # Ctrl-C too: a deployment outlives the driver unless it is taken down. What answered before goes on answering.
        if not is_update:
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
        http_options=HTTPOptions(host=service.host, port=service.port, request_timeout_s=PROXY_TIMEOUT_S),
        logging_config=LoggingConfig(log_level="WARNING"),
    )


def _catalogue_config(controller_dir: str | Path, service: ServiceConfig) -> CatalogueConfig:
    """The run's controller first. Replicas stand elsewhere, so local paths are made absolute."""
    sources = [ServedControllerConfig(path=str(controller_dir)), *service.controllers]
    return CatalogueConfig(
        controllers=[
            source if "://" in source.path or source.path == SHIPPED else source.model_copy(update={"path": str(Path(source.path).resolve())})
            for source in sources
        ]
    )


def _application(config: CatalogueConfig, service: ServiceConfig, token: str | None) -> serve.Application:
    replicas: dict[str, Any] = {"num_replicas": service.num_replicas}
    if service.max_replicas is not None:
        limits = {"min_replicas": service.num_replicas, "max_replicas": service.max_replicas}
        replicas = {"autoscaling_config": {**limits, "target_ongoing_requests": TARGET_ONGOING_REQUESTS}}
    deployment = controller_deployment(user_config=config.model_dump(exclude_none=True), **replicas)
    # Serve gives every call from Python a new version, and so replaces all replicas; ours stays the same where they can stay.
    deployment = deployment.options(_internal=True, version=code_version(token))
    # The token travels in this closure, not in a config or runtime_env, where the dashboard would show it.
    return deployment.bind(lambda: token)


def _is_deployed(app_name: str) -> bool:
    return _get_global_client(raise_if_no_controller_running=False) is not None and app_name in serve.status().applications


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


def claim_port(service: ServiceConfig) -> None:
    """Refuse a port that is not ours to use: Serve itself would start, and then answer nowhere.

    Raises:
        UserError: another program, or a Serve of this cluster on another address, is in the way.
    """
    addresses = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}  # Several nodes of one machine share theirs.
    if len(addresses) > 1 and service.host in LOOPBACK:
        raise UserError(
            f"service.host: must be reachable from all {len(addresses)} addresses of the cluster, got {service.host!r}; "
            "set it to 0.0.0.0 and service.token_env, "
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
    """The proxy is on the head node, wherever the driver is."""
    if host != "0.0.0.0":
        return host
    return next(str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"])


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


def _wait_answering(url: str, service: ServiceConfig, entries: list[Entry], deadline: float) -> None:
    """Until the proxy routes to the new controllers; when replacing others, those may answer for a moment longer, and of an update before."""
    expected = [(entry.name, entry.version, entry.sha256) for entry in entries]
    connection = ServiceConnection(url, service.model_copy(update={"retries": max(service.retries, 8)}))
    with connection.http:
        while True:
            listed = _listed(connection)
            found = [(entry.name, entry.version, entry.sha256) for entry in listed.controllers]
            if found == expected:
                return
            if time.monotonic() > deadline:
                if listed.reload_error is not None:
                    raise UserError(f"service: the replicas did not take over the controllers: {listed.reload_error}")
                raise UserError(f"service: {url} still answers with controllers {found}, expected {expected}; undeploy it first")
            time.sleep(0.1)


def _listed(connection: ServiceConnection) -> ControllerList:
    try:
        return ControllerList.model_validate_json(connection.send("GET", "/v1/controllers"))
    except (AwayError, ValidationError) as error:
        raise UserError(
            f"service: {connection.url} does not answer as the controller service just deployed ({error}); is the port shared?"
        ) from error
