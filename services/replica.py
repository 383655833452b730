"""One replica of the controller service, and the Serve application made of them.

    user_config {"controllers": [...]} → reconfigure → Catalogue ← looked up by ← build_app's routes

A config update that only changes `user_config` reaches the running replicas in place: none is restarted, and a request is answered by the
catalogue it found. `application` is what a Serve config file imports:

    import_path: services.replica:application        args: {token_env: PROXYMIX_TOKEN}        (cluster/serve.yaml)
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.util.metrics
from fastapi import FastAPI
from pydantic import ValidationError
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from proxymix.errors import UserError
from proxymix.service_config import ServiceConfig
from proxymix.telemetry import RELOAD_FAILURES, Telemetry
from proxymix.tuning_config import Strict
from services.app import MAX_IN_FLIGHT, QUICK_LOSSES, build_app
from services.catalogue import Catalogue, load_entries
from services.problems import RETRY_AFTER_S
from services.token import bearer_token

MAX_QUEUED_REQUESTS = 64
"""At the proxy; one more is 503."""
TARGET_ONGOING_REQUESTS = 4
"""Per replica, on average; above it the autoscaler adds replicas."""
SOURCES = frozenset({".py", ".html", ".css", ".js"})
"""What a running replica has loaded once and for all."""
LOG = logging.LoggerAdapter(logging.getLogger("ray.serve"), {"log_to_stderr": False})
"""Ray's own logger, so that the lines land in Serve's log files; not on the driver's console."""


class ControllerReplica:
    """A catalogue behind an application; Serve calls the methods."""

    def __init__(self, read_token: Callable[[], str | None]) -> None:
        """Args: `read_token` gives what callers must send; None: nothing."""
        self.catalogue, self.token, self.telemetry = Catalogue(), read_token(), Telemetry(ray.util.metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What answers; has no controller before the first `reconfigure`."""
        return build_app(self.catalogue, token=self.token, quick_losses=QUICK_LOSSES, log=LOG, telemetry=self.telemetry)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Takes over the controllers of `config`, all or none.

        The first time, a mistake stops the replica. Later the controllers of before go on answering and GET /v1/controllers tells why: an
        operator's slip must not take down what works.
        """
        try:
            self.catalogue.replace(await asyncio.to_thread(load_entries, config))
            LOG.info("serving %s", ", ".join(entry.label for entry in self.catalogue.entries))
        except UserError as error:
            if not self.catalogue.entries:
                raise RuntimeError(str(error)) from error
            self.catalogue.reload_error = str(error)
            self.telemetry.record(RELOAD_FAILURES)
            LOG.error("config update not taken: %s", error)

    def check_health(self) -> None:
        """Nothing to serve is a mistake in the config, told at the start rather than by every answer."""
        if not self.catalogue.entries:
            raise RuntimeError("user_config.controllers: must name at least one controller; give controllers: [{path: …}]")


class ApplicationArgs(Strict):
    """`args` of the application in a Serve config file."""

    token_env: str | None = None
    """Environment variable of the replicas with the bearer token."""
    token_file: str | None = None
    """File with it that every node has mounted; excludes token_env."""
    open: bool = False
    """Set it to true to ask for no token at all."""


def application(args: dict[str, Any]) -> serve.Application:
    """The application of a Serve config file; its controllers come from the deployment's `user_config`.

    Raises:
        UserError: `args` are not `ApplicationArgs`, or not exactly one of them is given.
    """
    try:
        given = ApplicationArgs.model_validate(args)
        service = ServiceConfig(token_env=given.token_env, token_file=given.token_file)
    except ValidationError as error:
        raise UserError(f"args: {error.errors()[0]['msg']}, got keys {sorted(args)}; give token_env, token_file or open: true") from error
    if service.is_guarded == given.open:
        raise UserError(f"args: exactly one of token_env, token_file and open: true must be given, got keys {sorted(args)}; name where the token is")
    return controller_deployment().bind(lambda: bearer_token(service))


def controller_deployment(**options: Any) -> serve.Deployment:
    """The deployment, with the limits it has everywhere. Args: `options` of `serve.deployment` that differ: replicas, user_config."""
    return serve.deployment(
        serve.ingress()(ControllerReplica),
        name="controller",
        ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
        max_ongoing_requests=MAX_IN_FLIGHT,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=5,
        health_check_period_s=2,  # A lost replica is replaced within seconds, inside the client's patience.
        max_constructor_retry_count=3,
        max_surge_percent=100,  # New code: the old replica goes when the new one answers.
        logging_config=LoggingConfig(enable_access_log=False),  # The application writes its own line, with the request id.
        **options,
    )


def code_version(token: str | None) -> str:
    """Changes with what a running replica cannot take over in place: the code and the token.

    Slow to compute and 32 bits short on purpose, so that it tells nothing about the token.
    """
    source = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.*")) if path.suffix in SOURCES)).digest()
    return hashlib.scrypt((token or "").encode(), salt=source, n=2**12, r=8, p=1, dklen=4).hex()
