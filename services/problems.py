"""Every refusal in one shape, application/problem+json (RFC 9457), and never the inside of the service.

HTTPException, RequestValidationError → problem(status, detail) → {"title", "status", "detail", "errors"}
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from services.schemas import ErrorResponse, FieldError

RETRY_AFTER_S = 1
"""What a 503 asks the caller to wait."""
MAX_REPORTED_ERRORS = 16
"""A body of a thousand faults gets an answer of sixteen."""
MEDIA_TYPE = "application/problem+json"


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error answers, for the schema and the interactive documentation."""
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    return {status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}


def add_error_handlers(app: FastAPI) -> None:
    """Answers for what FastAPI and Starlette raise."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [
            FieldError(field=printable(".".join(str(part) for part in e["loc"][1:]) or "body"), message=printable(_describe(e)))
            for e in error.errors()[:MAX_REPORTED_ERRORS]
        ]
        return problem(422, f"{faults[0].field}: {faults[0].message}", faults)

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        return problem(error.status_code, printable(str(error.detail)), headers=error.headers)


def problem(status: int, detail: str, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The answer; 503 asks for another try."""
    body = ErrorResponse(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors or [])
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return Response(body.model_dump_json(), status, media_type=MEDIA_TYPE, headers={**retry, **(headers or {})})


def printable(text: str) -> str:
    """At most 300 characters, all encodable: JSON can smuggle in half a surrogate pair, which UTF-8 cannot carry back."""
    return text[:300].encode("utf-8", "backslashreplace").decode()


def _describe(error: Mapping[str, Any]) -> str:
    """Rule and value. The value goes out as text: JSON itself has no NaN, and reprlib keeps it short."""
    if isinstance(error["input"], bytes):  # FastAPI hands over the raw bytes of a body that was not declared as JSON.
        return "the body must be a JSON object sent with Content-Type: application/json"
    return f"{error['msg']}, got {reprlib.repr(error['input'])}"
