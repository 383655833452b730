"""What every request passes before any route sees it, as one ASGI middleware, and the pool that decisions are computed in.

    request → id → token? → declared size? → [deadline, counted body → the application] → one JSON line in the log

Nothing leaves here as a 500: an unexpected failure is a traceback in the log and a 503 for the caller, to whom it is the same thing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import HTTPException, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxymix.telemetry import DECISIONS_IN_FLIGHT, REQUEST_SECONDS, REQUESTS, Telemetry
from services.problems import problem
from services.token import is_authorized

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
Result = TypeVar("Result")

OPEN_PATHS = frozenset({"/", "/healthz", "/health/live", "/health/ready", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
"""What needs no token; everything else does, also what does not exist."""
OPEN_FOLDER = "/page/"
"""The page's own files, which hold no data."""
ID_HEADER = "x-request-id"
MAX_ID_LENGTH = 128


class Gate:
    """The middleware."""

    def __init__(self, app: ASGIApp, *, token: str | None, max_body_bytes: int, timeout_s: float, log: Log, telemetry: Telemetry) -> None:
        """Args: as `services.app.build_app`."""
        self.app, self.token, self.max_body_bytes, self.timeout_s, self.log, self.telemetry = app, token, max_body_bytes, timeout_s, log, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; what is no HTTP (the server's own start and stop) passes."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Passage(self, scope, receive, send).run()

    def refusal(self, path: str, headers: Headers) -> Response | None:
        """What can be refused before the body is read."""
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if self.token is not None and not is_open and not is_authorized(headers.get("authorization", ""), self.token):
            return problem(401, "a valid bearer token is required", headers={"WWW-Authenticate": "Bearer"})
        declared = headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self.max_body_bytes):
            return problem(413, self.too_large)
        return None

    @property
    def too_large(self) -> str:
        """The rule about bodies."""
        return f"the body must be at most {self.max_body_bytes} bytes; send shorter histories"


class _Passage:
    """One request on its way through."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self.gate, self.scope, self.receive, self.send_on = gate, scope, receive, send
        self.headers = Headers(scope=scope)
        self.given_id = self.headers.get(ID_HEADER, "")
        self.id = self.given_id if 0 < len(self.given_id) <= MAX_ID_LENGTH and self.given_id.isprintable() else uuid4().hex
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self.status, self.num_bytes, self.is_received = 0, 0, False

    async def run(self) -> None:
        """To its answer and its line in the log."""
        start, level = time.perf_counter(), logging.INFO
        try:
            # One address may hold several applications, each beneath a path of its own.
            refusal = self.gate.refusal(self.scope["path"].removeprefix(self.scope.get("root_path", "")), self.headers)
            if refusal is not None:
                await refusal(self.scope, self.receive, self.send)
            else:
                async with asyncio.timeout(self.gate.timeout_s):
                    await self.gate.app(self.scope, self.counted, self.send)
        except TimeoutError:
            level = logging.WARNING
            limit = f"{self.gate.timeout_s:g} s"
            late = (503, f"no decision within {limit}; try again") if self.is_received else (408, f"the body did not arrive within {limit}")
            await self.answer(problem(*late))
        except Exception:
            level = logging.WARNING
            self.gate.log.exception("unexpected failure, id=%r, request_id=%r", self.id, self.state.get("request_id"))
            await self.answer(problem(503, "the service failed to answer; its log has the reason"))
        finally:
            seconds = time.perf_counter() - start
            self.gate.log.log(level, self.line(seconds))
            self.gate.telemetry.record(REQUESTS, route=self.route, status=str(self.status))
            self.gate.telemetry.record(REQUEST_SECONDS, seconds, route=self.route)

    @property
    def route(self) -> str:
        """The pattern that the path fitted: there are few of them, however many paths callers think up."""
        return getattr(self.scope.get("route"), "path", "none")

    async def counted(self) -> Message:
        """A body above the limit is 413 as soon as the limit is passed, whatever Content-Length claimed; FastAPI hands the exception on."""
        message = await self.receive()
        self.num_bytes += len(message.get("body", b""))
        self.is_received = not message.get("more_body", False)
        if self.num_bytes > self.gate.max_body_bytes:
            raise HTTPException(413, self.gate.too_large)
        return message

    async def send(self, message: Message) -> None:
        """Notes the status; names the request where nobody before us did (Serve's proxy does, and repeats it in the answer itself)."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self.given_id:
                MutableHeaders(scope=message)[ID_HEADER] = self.id
        await self.send_on(message)

    async def answer(self, response: Response) -> None:
        """Unless an answer has begun already."""
        if not self.status:
            await response(self.scope, self.receive, self.send)

    def line(self, seconds: float) -> str:
        """For the access log; JSON, so that nothing a caller sends can forge a second line."""
        facts = {
            "method": self.scope["method"],
            "path": self.scope["path"],
            "status": self.status,
            "ms": round(1000 * seconds, 2),
            "bytes": self.num_bytes,
            "id": self.id,
            "request_id": self.state.get("request_id"),
            "controller": self.state.get("controller"),
        }
        return json.dumps(facts)


class DecisionPool:
    """A bounded number of computations at once; one more is refused, not queued: the queue is Serve's, in front of the replica.

    A thread cannot be stopped, so one that has outlived its request keeps its place until it is done.
    """

    def __init__(self, size: int, telemetry: Telemetry | None = None) -> None:
        """Args: `size`: computations at once. `telemetry` is told how many there are."""
        self.size, self.telemetry = size, telemetry or Telemetry()
        self._running = 0
        self._free = threading.BoundedSemaphore(size)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="decision")
        self._count(0)  # Told of from the start, also where every decision is quick.

    async def run(self, function: Callable[..., Result], *args: Any, is_quick: bool = False) -> Result:
        """`function(*args)` in a thread; if it is quick at once, because handing it over and back would take longer than it.

        Raises:
            HTTPException: 503, all threads are busy.
        """
        if is_quick:
            return function(*args)
        if not self._free.acquire(blocking=False):
            raise HTTPException(503, f"{self.size} decisions are already being computed; try again")
        self._count(1)
        future = self._threads.submit(function, *args)
        future.add_done_callback(lambda _: self._free.release())
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._running += change  # On the event loop alone.
        self.telemetry.record(DECISIONS_IN_FLIGHT, self._running)
