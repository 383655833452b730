"""The page at `/`: three static files, served without a token because they hold no data; what they show is fetched from /v1 with it.

    index.html + page.css + page.js → browser → GET /v1/controllers, GET /v1/runs, POST …/decisions (token from the page's own field)

Nothing is built and nothing comes from another host, which the Content-Security-Policy also enforces.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException, Response

FOLDER = Path(__file__).parent
MEDIA_TYPES = {"page.css": "text/css", "page.js": "text/javascript"}
"""What /page/ has; a name is looked up here and never joined to a path."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes(*, is_guarded: bool) -> APIRouter:
    """`/` and `/page/…`. Args: `is_guarded`: whether data needs a token, so that the page asks for one before it is refused."""
    html = (FOLDER / "index.html").read_text(encoding="utf-8").replace('data-guarded="false"', f'data-guarded="{str(is_guarded).lower()}"')
    files = {name: (FOLDER / name).read_text(encoding="utf-8") for name in MEDIA_TYPES}
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return Response(html, media_type="text/html", headers=HEADERS)

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "the page has no such file")
        return Response(files[name], media_type=MEDIA_TYPES[name], headers=HEADERS)

    return router
