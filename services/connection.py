"""One HTTP connection to a controller service, with the retry policy and the sorting of errors into *away*, *another* and *no*.

200                                                → the body
refused connection, timeout, 5xx, 404, 408, 429    → away, tried again
412, another controller answers                    → tried again, because a replica may be in the middle of a config update
401, 403, 422, …                                   → no, at once
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from proxymix.errors import UserError
from proxymix.service_config import ServiceConfig
from services.token import bearer_token

AWAY_STATUSES = frozenset({404, 408, 429})
"""Beside 5xx. 404: Serve answers it while the application is being replaced; a wrong address is found by `check_reachable`."""
MAX_RETRY_AFTER_S = 30.0
"""A longer Retry-After is cut: the run must not stand still for as long as a server likes."""
MAX_ANSWER_BYTES = 16 * 2**20
"""The largest simulation that the service takes on is answered with a few megabytes."""
NO_PROXY_HOSTS: dict[str, httpx.BaseTransport | None] = {"all://127.0.0.1": None, "all://localhost": None}
"""A company's HTTP_PROXY cannot reach this machine's own loopback."""


class AwayError(Exception):
    """The service could not answer now. Carries what it said about when it could."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class AnotherControllerError(AwayError):
    """The service has other weights than the pinned ones, and kept saying so."""


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
        self.url, self.timeout_s = url, service.timeout_s
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
            retry=retry_if_exception_type(AwayError),
            sleep=sleep,
            reraise=True,
        )

    def send(self, method: str, path: str, body: str | None = None, sha256: str | None = None, fallbacks: int = 0) -> bytes:
        """The body of a 200 answer, after as many attempts as allowed.

        Args:
            method: HTTP's.
            path: below the address.
            body: JSON.
            sha256: of the only weights that may answer; None: any.
            fallbacks: boundaries the run decided itself since the last answer; told in a header, which an older service ignores.

        Raises:
            AnotherControllerError: the service no longer has those weights.
            AwayError: every attempt failed; the message is the last reason.
            UserError: the service refused the request.
        """
        headers = {"Content-Type": "application/json"} if body else {}
        if sha256 is not None:
            headers["If-Match"] = f'"{sha256}"'
        if fallbacks:
            headers["X-Proxymix-Fallbacks"] = str(fallbacks)
        return self._attempts(self._send_once, method, path, body, headers)

    def _send_once(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> bytes:
        deadline, content = time.monotonic() + self.timeout_s, b""
        try:
            with self.http.stream(method, path, content=body, headers=headers) as response:
                for part in response.iter_bytes():
                    content = content + part if content else part  # Nearly always there is but one.
                    if len(content) > MAX_ANSWER_BYTES:
                        break
                    if time.monotonic() > deadline:  # The time-out of httpx itself begins anew with every byte that comes.
                        raise AwayError(f"no whole answer within {self.timeout_s:g} s")
        except httpx.UnsupportedProtocol as error:
            raise UserError(f"service.url: must start with http:// or https://, got {self.url!r}") from error
        except httpx.TransportError as error:
            raise AwayError(f"{type(error).__name__}: {error}") from error
        if response.status_code == 412:
            raise AnotherControllerError(_detail(content))
        if response.status_code >= 500 or response.status_code in AWAY_STATUSES:
            raise AwayError(f"{response.status_code} {response.reason_phrase}", _retry_after_s(response))
        if response.status_code != 200:
            raise UserError(_refusal(self.url, response.status_code, content))
        if len(content) > MAX_ANSWER_BYTES:
            raise UserError(f"service.url: {self.url} answered with more than {MAX_ANSWER_BYTES} bytes; is it a controller service?")
        return content


def _refusal(url: str, status: int, content: bytes) -> str:
    remedy = {401: "set service.token_env or service.token_file to where the token is", 403: "ask the service's owner for access"}
    return f"service.url: {url} refused the request with {status}: {_detail(content)}; {remedy.get(status, 'mend the request')}"


def _detail(content: bytes) -> str:
    return content[:2000].decode(errors="replace")[:500]


_EXPONENTIAL = wait_exponential_jitter(multiplier=0.2, max=5.0, jitter=0.2)


def _back_off(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for (but never less than the jittered exponential)."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, AwayError) else None
    return max(_EXPONENTIAL(state), asked or 0.0)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds in a Retry-After header, given as a number or a date; None when absent or nonsense."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value) if value.replace(".", "", 1).isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
