"""The controller service as a plain FastAPI application; Ray Serve is only a shell round it (see `deployment`).

    POST /v1/decisions → token? → 413 too large? → 422 not a boundary? → 503 too busy? → controller.decide → 200

Stateless: equal requests get equal answers from every replica, so a retry is harmless. Never a 500: whatever goes wrong in here is logged
and answered with 503 and Retry-After, because to the caller it is the same thing: no decision now.
"""

from __future__ import annotations

import asyncio
import json
import logging
import reprlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Protocol

from fastapi import Depends, FastAPI, HTTPException, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxymix.types import Controller
from services.schemas import DecisionRequest, DecisionResponse, ErrorResponse, FieldError

RETRY_AFTER_S = 1
"""What a 503 asks the caller to wait."""
MAX_REPORTED_ERRORS = 16
"""A body of a thousand faults gets an answer of sixteen."""
BEARER = HTTPBearer(auto_error=False)
"""At module level: FastAPI resolves annotations there and would not find it inside a function."""

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]


class ServableController(Controller, Protocol):
    """What the service needs to know of a controller beside `decide`."""

    sha256: str | None
    """Hash of its weights; one without cannot be served, because callers pin it."""
    card: Mapping[str, Any]
    """How it was trained; answered by GET /v1/controller."""
    max_sources: int | None
    """Most sources it can weigh; None: any number."""


def build_app(
    controller: ServableController,
    *,
    token: str | None,
    max_sources_per_request: int = 1024,
    max_body_bytes: int = 8 * 2**20,
    max_in_flight: int = 16,
    log: Log | None = None,
) -> FastAPI:
    """The application that serves `controller`.

    Args:
        controller: frozen; its `decide` must not keep state.
        token: what /v1/* asks for as `Authorization: Bearer`; None: nothing.
        max_sources_per_request: more is 422, whatever the controller could do.
        max_body_bytes: a larger body is 413.
        max_in_flight: decisions computed at once; one more is 503.
        log: gets one JSON line per request and a traceback per unexpected failure.

    Raises:
        ValueError: the controller has no hash.
    """
    if controller.sha256 is None:
        raise ValueError(f"controller {controller.name!r} has no sha256; save and load it first")
    app = FastAPI(title="PROXYMIX controller", version="1", description="Validation losses in, replay mixture out.")
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes)
    _add_access_log(app, log or logging.getLogger(__name__))
    _add_error_handlers(app)
    guarded = [Depends(_token_check(token))] if token is not None else []
    max_sources = min(max_sources_per_request, controller.max_sources or max_sources_per_request)
    _add_decisions(app, controller, guarded, max_sources, max_in_flight)
    _add_card_and_health(app, controller, guarded)
    return app


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error answers, for the interactive documentation."""
    return {status: {"model": ErrorResponse} for status in statuses}


def _add_decisions(app: FastAPI, controller: ServableController, guarded: list[params.Depends], max_sources: int, max_in_flight: int) -> None:
    in_flight = asyncio.Semaphore(max_in_flight)

    @app.post("/v1/decisions", dependencies=guarded, responses=_documented(401, 413, 422, 503))
    async def decide(body: DecisionRequest, request: Request) -> DecisionResponse:
        """The mixture of the next stage."""
        request.state.request_id = body.request_id
        if len(body.sources) > max_sources:
            raise RequestValidationError(
                [{"loc": ("body", "sources"), "msg": f"this controller takes at most {max_sources} sources", "input": len(body.sources)}]
            )
        if in_flight.locked():
            raise HTTPException(503, f"{max_in_flight} decisions are already being computed; try again")
        async with in_flight:
            boundary = body.to_boundary()
            decision = await run_in_threadpool(controller.decide, boundary)
        return DecisionResponse.from_decision(decision, boundary, body.request_id)


def _add_card_and_health(app: FastAPI, controller: ServableController, guarded: list[params.Depends]) -> None:
    @app.get("/v1/controller", dependencies=guarded, responses=_documented(401, 503))
    async def card() -> dict[str, Any]:
        """Which controller this is and how it was trained."""
        return {**controller.card, "name": controller.name, "sha256": controller.sha256}

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the service is up; needs no token."""
        return {"status": "ok"}


class BodyLimit:
    """ASGI middleware: a body above the limit is 413 as soon as the limit is passed, whatever Content-Length claimed."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what comes in; FastAPI hands an HTTPException raised while it reads on to the error handlers."""
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self.max_body_bytes:
                raise HTTPException(413, f"the body must be at most {self.max_body_bytes} bytes; send shorter histories")
            return message

        await self.app(scope, limited, send)


def _token_check(token: str) -> Callable[..., None]:
    """A dependency that refuses requests without `token`."""

    def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        given = credentials.credentials if credentials else ""
        # Constant time, so that the token cannot be guessed byte by byte from the answer's delay.
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "a valid bearer token is required", headers={"WWW-Authenticate": "Bearer"})

    return check


def _add_access_log(app: FastAPI, log: Log) -> None:
    """One JSON line per request; an unexpected exception becomes a traceback here and a 503 for the caller."""

    @app.middleware("http")
    async def log_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        failed = False
        try:
            response = await call_next(request)
        except Exception:
            failed = True
            log.exception("unexpected failure, request_id=%r", getattr(request.state, "request_id", None))
            response = _problem(503, "the service failed to answer; its log has the reason")
        line = {
            "method": request.method,
            "path": request.url.path,
            "status": response.status_code,
            "ms": round(1000 * (time.perf_counter() - start), 2),
            "request_id": getattr(request.state, "request_id", None),
        }
        log.log(logging.WARNING if failed else logging.INFO, json.dumps(line))
        return response


def _add_error_handlers(app: FastAPI) -> None:
    """Every refusal in one shape."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [
            FieldError(field=_printable(".".join(str(part) for part in e["loc"][1:]) or "body"), message=_printable(_describe(e)))
            for e in error.errors()[:MAX_REPORTED_ERRORS]
        ]
        return _problem(422, f"{faults[0].field}: {faults[0].message}", faults)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return _problem(error.status_code, str(error.detail), headers=error.headers)


def _describe(error: Mapping[str, Any]) -> str:
    """Rule and value. The value goes out as text: JSON itself has no NaN, and reprlib keeps it short."""
    if isinstance(error["input"], bytes):  # FastAPI hands over the raw bytes of a body that was not declared as JSON.
        return "the body must be a JSON object sent with Content-Type: application/json"
    return f"{error['msg']}, got {reprlib.repr(error['input'])}"


def _printable(text: str) -> str:
    """At most 300 characters, all encodable: JSON can smuggle in half a surrogate pair, which UTF-8 cannot carry back."""
    return text[:300].encode("utf-8", "backslashreplace").decode()


def _problem(status: int, detail: str, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None) -> Response:
    body = ErrorResponse(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or [])
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return Response(body.model_dump_json(), status, media_type="application/problem+json", headers={**retry, **(headers or {})})
