"""The controller service as a plain FastAPI application; Ray Serve is only a shell round it (see `deployment`).

    POST /v1/decisions → Gate: 401, 413, 408 → 422 not a boundary? → 404, 412 which controller? → 503 too busy? → controller.decide → 200

Stateless: equal requests get equal answers from every replica, so a retry is harmless. Never a 500: whatever goes wrong in here is logged
and answered with 503 and Retry-After, because to the caller it is the same thing: no decision now.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, HTTPException

from proxymix.telemetry import Telemetry
from services.catalogue import Catalogue, ServableController, entry_of
from services.gate import DecisionPool, Gate, Log
from services.page import page_routes
from services.problems import add_error_handlers
from services.routes import controller_routes
from services.runs import RecentRuns
from services.schemas import ErrorResponse

__all__ = ["ServableController", "build_app"]

MAX_IN_FLIGHT = 16
"""Decisions computed at once by one replica; each takes about a millisecond."""
QUICK_LOSSES = 1000
"""A frozen controller decides on them within about a millisecond, mostly within a tenth; a thread's way there and back takes longer."""


def build_app(
    served: ServableController | Catalogue,
    *,
    token: str | None,
    max_sources_per_request: int = 1024,
    max_body_bytes: int = 8 * 2**20,
    max_in_flight: int = MAX_IN_FLIGHT,
    timeout_s: float = 15.0,
    quick_losses: int = 0,
    log: Log | None = None,
    telemetry: Telemetry | None = None,
) -> FastAPI:
    """The application that serves one frozen controller, or a catalogue of them that may be replaced while it runs.

    Args:
        served: a controller's `decide` must not keep state.
        token: what is asked for as `Authorization: Bearer`, of everything but the health checks, the documentation and the empty page; None: nothing.
        max_sources_per_request: more is 422, whatever the controller could do.
        max_body_bytes: a larger body is 413.
        max_in_flight: decisions computed at once; one more is 503.
        timeout_s: from the first byte to the last; a body that is slower is 408, a decision 503.
        quick_losses: a decision on at most so many losses in all is made at once, not in a thread; only for controllers known to be quick.
            A replica gives `QUICK_LOSSES`.
        log: gets one JSON line per request and a traceback per unexpected failure.
        telemetry: gets the service's metrics of `proxymix.telemetry`.

    Raises:
        ValueError: the controller has no hash.
    """
    telemetry = telemetry or Telemetry()
    catalogue = served if isinstance(served, Catalogue) else Catalogue([entry_of(served)])
    app = FastAPI(title="PROXYMIX controller", version="1", description="Validation losses in, replay mixture out.")
    app.add_middleware(
        Gate,
        token=token,
        max_body_bytes=max_body_bytes,
        timeout_s=timeout_s,
        log=log or logging.getLogger(__name__),
        telemetry=telemetry,
    )
    add_error_handlers(app)
    app.include_router(controller_routes(catalogue, DecisionPool(max_in_flight, telemetry), max_sources_per_request, RecentRuns(), quick_losses))
    app.include_router(page_routes(is_guarded=token is not None))
    _add_health(app, catalogue)
    _document_errors(app)
    return app


def _add_health(app: FastAPI, catalogue: Catalogue) -> None:
    @app.get("/health/live")
    @app.get("/healthz", include_in_schema=False)
    async def live() -> dict[str, str]:
        """Whether the process answers; needs no token. If it does not, restart it."""
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        """Whether there is a controller to ask; needs no token. If there is none, send no traffic yet."""
        if not catalogue.entries:
            raise HTTPException(503, "no controller is loaded yet")
        return {"status": "ready"}


def _document_errors(app: FastAPI) -> None:
    """The schema of refusals, which no route returns as its own model."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schema = ErrorResponse.model_json_schema(ref_template="#/components/schemas/{model}")
        parts = schema.pop("$defs", {})
        document.setdefault("components", {}).setdefault("schemas", {}).update({**parts, "ErrorResponse": schema})
        return document

    app.openapi = openapi  # type: ignore[method-assign]
