"""The controller as a target run sees it: an ordinary `Controller` whose answers come over HTTP.

    decide(boundary) → POST /v1/decisions → Decision          (bounded retries; then the declared fallback, recorded as such)

A service that is *away* (refused connection, timeout, 5xx, 404, 408, 429) never stops a run. A service that says *no* (401, 403, 422, …), that is
no controller service, or that has become a different controller half-way, does: going on would give numbers that mean nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx
from pydantic import ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from proxymix.config import ServiceConfig
from proxymix.errors import UserError
from proxymix.types import Controller, Decision, StageBoundary
from services.schemas import ControllerRef, DecisionRequest, DecisionResponse

AWAY_STATUSES = frozenset({404, 408, 429})
"""Beside 5xx. 404: Serve answers it while the application is being replaced; a wrong address is found by `check_reachable`."""
MAX_RETRY_AFTER_S = 30.0
"""A longer Retry-After is cut: the run must not stand still for as long as a server likes."""
NO_PROXY_HOSTS: dict[str, httpx.BaseTransport | None] = {"all://127.0.0.1": None, "all://localhost": None}
"""A company's HTTP_PROXY cannot reach this machine's own loopback."""


class _AwayError(Exception):
    """The service could not answer now. Carries what it said about when it could."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def bearer_token(service: ServiceConfig) -> str | None:
    """The token in the environment variable named by `service.token_env`; None when none is asked.

    Raises:
        UserError: the variable is named but not set, or holds what a header cannot carry.
    """
    if service.token_env is None:
        return None
    token = os.environ.get(service.token_env)
    if not token:
        raise UserError(f"service.token_env: environment variable {service.token_env!r} is not set; export it or remove service.token_env")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError(f"service.token_env: {service.token_env!r} must hold printable ASCII without spaces or line ends; export it again")
    return token


class ServiceConnection:
    """One HTTP connection with the retry policy and the sorting of errors into *away* and *no*."""

    def __init__(
        self,
        url: str,
        service: ServiceConfig,
        *,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        token = token or bearer_token(service)
        self.url = url
        try:
            self.http = httpx.Client(
                base_url=url,
                timeout=service.timeout_s,
                headers={"Authorization": f"Bearer {token}"} if token else {},
                transport=transport,
                mounts=NO_PROXY_HOSTS,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise UserError(f"service.url: must be an http(s) address, got {url!r} ({error})") from error
        self._attempts = Retrying(
            stop=stop_after_attempt(1 + service.retries),
            wait=_back_off,
            retry=retry_if_exception_type(_AwayError),
            sleep=sleep,
            reraise=True,
        )

    def send(self, method: str, path: str, body: str | None = None) -> bytes:
        """The body of a 200 answer, after as many attempts as allowed.

        Raises:
            _AwayError: every attempt failed; the message is the last reason.
            UserError: the service refused the request.
        """
        return self._attempts(self._send_once, method, path, body)

    def _send_once(self, method: str, path: str, body: str | None) -> bytes:
        try:
            response = self.http.request(method, path, content=body, headers={"Content-Type": "application/json"} if body else {})
        except httpx.UnsupportedProtocol as error:
            raise UserError(f"service.url: must start with http:// or https://, got {self.url!r}") from error
        except httpx.TransportError as error:
            raise _AwayError(f"{type(error).__name__}: {error}") from error
        if response.status_code >= 500 or response.status_code in AWAY_STATUSES:
            raise _AwayError(f"{response.status_code} {response.reason_phrase}", _retry_after_s(response))
        if response.status_code != 200:
            raise UserError(_refusal(self.url, response))
        return response.content


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
            service: timeouts (s, per attempt), number of retries, and the token's environment variable.
            run: prefix of every request id, `demo/proxymix/seed0`.
            fallback: decides when the service is away.
            sha256: the only controller to accept; None: the one that answers first.
            token: bearer token; None: read from the environment variable `service.token_env`, if it names one.
            transport: replaces the network in tests.
            sleep: waits between attempts, seconds.
        """
        self.run = run
        self.fallback = fallback
        self.sha256 = sha256
        self.connection = ServiceConnection(url, service, token=token, transport=transport, sleep=sleep)

    def decide(self, boundary: StageBoundary) -> Decision:
        """The service's decision; or the fallback's, with the reason in `Decision.fallback`.

        Raises:
            UserError: the service refused the request, is another controller than before, or is no controller service.
        """
        request = _request(boundary, f"{self.run}/task{boundary.task_index}/stage{boundary.stage_index}")
        try:
            content = self.connection.send("POST", "/v1/decisions", request.model_dump_json(exclude_defaults=True))
        except _AwayError as error:
            return replace(self.fallback.decide(boundary), fallback=f"controller service away: {error}")
        decision = _decision(self.connection.url, content, boundary)
        if self.sha256 is not None and decision.sha256 != self.sha256:
            raise UserError(
                f"service.url: the controller changed during run {self.run!r}, from sha256 {self.sha256} to {decision.sha256}; "
                "serve the first one again, or start the run anew"
            )
        self.sha256 = decision.sha256
        return decision

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
            content = connection.send("GET", "/v1/controller")
    except _AwayError as error:
        raise UserError(
            f"service.url: {url} is not reachable ({error}); start it with `python -m jobs.serve_controller`, or mend the address"
        ) from error
    try:
        card: dict[str, Any] = httpx.Response(200, content=content).json()
        return ControllerRef(name=card["name"], sha256=card["sha256"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"service.url: {url} answers, but not as a controller service; mend the address") from error


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


def _refusal(url: str, response: httpx.Response) -> str:
    remedy = {401: "set service.token_env to the variable with the service's token", 403: "ask the service's owner for access"}
    detail = response.text[:500]
    return f"service.url: {url} refused the request with {response.status_code}: {detail}; {remedy.get(response.status_code, 'mend the request')}"


_EXPONENTIAL = wait_exponential_jitter(multiplier=0.2, max=5.0, jitter=0.2)


def _back_off(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for (but never less than the jittered exponential)."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, _AwayError) else None
    return max(_EXPONENTIAL(state), asked or 0.0)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds in a Retry-After header, given as a number or a date; None when absent or nonsense."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.replace(".", "", 1).isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
