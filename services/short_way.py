"""A short way to the same answer for requests that are as they should be.

    request → answer(request) → response        None: → FastAPI, as if nothing had been tried → response or refusal

FastAPI looks at every parameter of a request and of all that its route depends on by itself, which takes longer than a decision. The route stays
declared as ever, so the OpenAPI document and every refusal are FastAPI's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

Answer = Callable[[Request], Awaitable[Response | None]]


def short_way(answer: Answer) -> type[APIRoute]:
    """A class of routes that ask `answer` first.

    Args:
        answer: gives what the declared function would answer, or None where that is not plain to see. It may have read the body; that is kept.
    """

    class ShortWay(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            long_way = super().get_route_handler()

            async def handle(request: Request) -> Response:
                response = await answer(request)
                return await long_way(request) if response is None else response

            return handle

    return ShortWay
