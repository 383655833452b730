"""The controller as a target run sees it: an ordinary `Controller` whose answers come over HTTP.

    decide(boundary) → POST /v1/decisions → Decision          (bounded retries; then the declared fallback, recorded as such)

A service that is *away* (refused connection, timeout, 5xx, 404, 408, 429) never stops a run. A service that says *no* (401, 403, 422, …), that is
no controller service, or that no longer has the controller the run began with, does: going on would give numbers that mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

import httpx
from pydantic import ValidationError

from proxymix.errors import UserError
from proxymix.service_config import ServiceConfig
from proxymix.types import Controller, Decision, StageBoundary
from services.connection import AnotherControllerError, AwayError, ServiceConnection
from services.schemas import ControllerRef, DecisionRequest, DecisionResponse, SimulatedDecision, SimulationResponse
from services.token import bearer_token

__all__ = ["ServiceConnection", "ServiceController", "bearer_token", "check_reachable"]


class ServiceController:
    """Asks the service at every stage boundary; implements `proxymix.types.Controller`."""

    name = "proxymix"

    def __init__(
        self,
        url: str,
        service: ServiceConfig,
        *,
        run: str,
        fallback: Controller,
        sha256: str | None = None,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: where the service answers, `http://host:port`.
            service: timeouts (s, per attempt), number of retries, where the token is, and which controller to ask.
            run: prefix of every request id, `demo/proxymix/seed0`.
            fallback: decides when the service is away.
            sha256: the only controller to accept; None: the one that answers first.
            token: bearer token; None: read from where `service` says, if it says so.
            transport: replaces the network in tests.
            sleep: waits between attempts, seconds.
        """
        self.run = run
        self.fallback = fallback
        self.sha256 = sha256
        self.path = _path(service)
        self.num_fallbacks = 0
        """Decisions the fallback made since the last answer; the service's page shows where."""
        self.connection = ServiceConnection(url, service, token=token, transport=transport, sleep=sleep)

    def decide(self, boundary: StageBoundary) -> Decision:
        """The service's decision; or the fallback's, with the reason in `Decision.fallback`.

        Raises:
            UserError: the service refused the request, is another controller than before, or is no controller service.
        """
        try:
            content = self._ask("decisions", boundary, self.num_fallbacks)
        except AwayError as error:
            self.num_fallbacks += 1
            return replace(self.fallback.decide(boundary), fallback=f"controller service away: {error}")
        decision = _decision(self.connection.url, content, boundary)
        if self.sha256 is not None and decision.sha256 != self.sha256:
            raise self._changed(decision.sha256 or "none")
        self.sha256, self.num_fallbacks = decision.sha256, 0
        return decision

    def simulate(self, boundary: StageBoundary) -> list[SimulatedDecision]:
        """What the controller would have decided at every boundary of a run that has come to `boundary`, in order; for looking before trusting.

        Raises:
            UserError: the service is away, refused the request, or is no controller service.
        """
        try:
            return SimulationResponse.model_validate_json(self._ask("simulate", boundary)).decisions
        except AwayError as error:
            raise UserError(f"service.url: {self.connection.url} is not reachable ({error}); start it, or mend the address") from error
        except ValidationError as error:
            raise UserError(f"service.url: {self.connection.url} answered 200 with something that is no simulation; mend the address") from error

    def _ask(self, question: str, boundary: StageBoundary, fallbacks: int = 0) -> bytes:
        request = _request(boundary, f"{self.run}/task{boundary.task_index}/stage{boundary.stage_index}")
        try:
            return self.connection.send("POST", f"{self.path}/{question}", request.model_dump_json(exclude_defaults=True), self.sha256, fallbacks)
        except AnotherControllerError as error:
            raise self._changed(str(error)) from error

    def _changed(self, found: str) -> UserError:
        return UserError(
            f"service.url: the controller changed during run {self.run!r}, from sha256 {self.sha256} to {found}; "
            "serve the first one again beside it, or start the run anew"
        )

    def close(self) -> None:
        """Give the connection back."""
        self.connection.http.close()

    def __enter__(self) -> ServiceController:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_reachable(
    url: str,
    service: ServiceConfig,
    *,
    transport: httpx.BaseTransport | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ControllerRef:
    """Which controller answers at `url`: for the start of a run, before anything is spent.

    Raises:
        UserError: nothing answers, the token is refused, or it is no controller service.
    """
    connection = ServiceConnection(url, service, transport=transport, sleep=sleep)
    try:
        with connection.http:
            content = connection.send("GET", path if (path := _path(service)) != "/v1" else "/v1/controller")
    except AwayError as error:
        raise UserError(
            f"service.url: {url} is not reachable ({error}); start it with `python -m jobs.serve_controller`, or mend the address"
        ) from error
    try:
        card: dict[str, Any] = httpx.Response(200, content=content).json()
        return ControllerRef(name=card["name"], sha256=card["sha256"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"service.url: {url} answers, but not as a controller service; mend the address") from error


def _path(service: ServiceConfig) -> str:
    """Where the controller that `service` names is asked."""
    if service.controller is None:
        return "/v1"
    name, _, version = service.controller.partition("@")
    return f"/v1/controllers/{name}" + (f"/versions/{version}" if version else "")


def _request(boundary: StageBoundary, request_id: str) -> DecisionRequest:
    try:
        return DecisionRequest.from_boundary(boundary, request_id)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{request_id}: {where}: {first['msg']}, got {first['input']!r}; did the training diverge?") from error


def _decision(url: str, content: bytes, boundary: StageBoundary) -> Decision:
    try:
        return DecisionResponse.model_validate_json(content).to_decision(boundary)
    except ValueError as error:
        raise UserError(f"service.url: {url} answered 200 with something that is no decision; is it a controller service? {error}") from error
