"""What can be asked of the controllers: each question at three addresses, which differ in how the controller is named.

    /v1/decisions                                        the default
    /v1/controllers/{name}/decisions                     that name's default version
    /v1/controllers/{name}/versions/{version}/decisions  that version

`If-Match: "<sha256>"` narrows any of them to weights of that hash: a run that began with a controller goes on with it after another has taken
its place, as long as the service keeps it, and is refused (412) rather than answered by another.

(Annotations are evaluated here, unlike elsewhere: FastAPI would not find the names of an enclosing function in them.)
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from proxymix.service_config import Label
from proxymix.telemetry import DECISIONS
from services.catalogue import Catalogue, Entry
from services.gate import DecisionPool
from services.problems import documented
from services.runs import RecentRuns, RunDetail, RunList
from services.schemas import ControllerList, ControllerRef, ControllerSummary, DecisionRequest, DecisionResponse, SimulationResponse
from services.short_way import short_way
from services.simulation import simulate, trajectory

BEARER = HTTPBearer(auto_error=False)
"""Only for the documentation; the Gate has checked before a body was read."""
MAX_IF_MATCH = 70
FALLBACKS = "X-Proxymix-Fallbacks"
IfMatch = Annotated[str | None, Header(description="SHA-256 of the only weights to accept, in double quotes", max_length=MAX_IF_MATCH)]
NameInPath = Annotated[Label, Path(description="name of a controller, see GET /v1/controllers")]
VersionInPath = Annotated[Label, Path(description="version of it")]
Fallbacks = Annotated[int, Header(alias=FALLBACKS, description="boundaries just before this one that the run decided itself", ge=0, le=10**6)]
Chooser = Callable[..., Awaitable[Entry]]
Decider = Callable[[DecisionRequest, Request, Entry, int], Awaitable[DecisionResponse]]


def controller_routes(catalogue: Catalogue, pool: DecisionPool, max_sources: int, runs: RecentRuns, quick_losses: int = 0) -> APIRouter:
    """Everything under /v1.

    Args:
        catalogue: looked up once per request.
        pool: where decisions are computed.
        max_sources: per request, whatever the controller could do.
        runs: remembers the decisions.
        quick_losses: as `services.app.build_app`.
    """
    router = APIRouter(prefix="/v1", dependencies=[Depends(BEARER)])
    decide = _decider(pool, max_sources, runs, quick_losses)
    for prefix, choose in _choosers(catalogue).items():
        _add_decisions(router, prefix, choose, decide, catalogue)
        _add_simulations(router, prefix, choose, pool, max_sources)
        _add_card(router, prefix, choose)
    _add_runs(router, runs)

    @router.get("/controllers", responses=documented(401, 503))
    async def controllers() -> ControllerList:
        """All of them; the default first."""
        if not (entries := catalogue.entries):
            raise HTTPException(503, "no controller is loaded yet")
        return ControllerList(
            default=entries[0].label, controllers=[_summary(catalogue, entry) for entry in entries], reload_error=catalogue.reload_error
        )

    return router


def _choosers(catalogue: Catalogue) -> dict[str, Chooser]:
    """How the controller is found, by address."""

    def find(name: str | None, version: str | None, if_match: str | None) -> Entry:
        if not catalogue.entries:
            raise HTTPException(503, "no controller is loaded yet")
        try:
            return catalogue.find(name, version, _pinned(if_match))
        except KeyError:
            raise HTTPException(404, "no controller of that name and version; GET /v1/controllers lists them") from None
        except LookupError as error:
            raise HTTPException(412, f"the controller changed: {error}") from None

    # `async`, although nothing is awaited: FastAPI would run a plain function in a thread.
    async def default(if_match: IfMatch = None) -> Entry:
        return find(None, None, if_match)

    async def by_name(name: NameInPath, if_match: IfMatch = None) -> Entry:
        return find(name, None, if_match)

    async def by_version(name: NameInPath, version: VersionInPath, if_match: IfMatch = None) -> Entry:
        return find(name, version, if_match)

    return {"": default, "/controllers/{name}": by_name, "/controllers/{name}/versions/{version}": by_version}


def _decider(pool: DecisionPool, max_sources: int, runs: RecentRuns, quick_losses: int) -> Decider:
    """What follows once it is known what is asked of whom."""

    async def decide(body: DecisionRequest, request: Request, entry: Entry, fallbacks: int) -> DecisionResponse:
        _admit(body, request, entry, max_sources)
        boundary = body.to_boundary()
        is_quick = sum(len(source.losses) for source in body.sources) <= quick_losses
        decision = await pool.run(entry.controller.decide, boundary, is_quick=is_quick)
        answer = DecisionResponse.from_decision(decision, boundary, body.request_id)
        pool.telemetry.record(DECISIONS, controller=entry.name, version=entry.version)
        runs.record(body, answer, entry.label, fallbacks)
        return answer

    return decide


def _add_decisions(router: APIRouter, prefix: str, choose: Chooser, decide: Decider, catalogue: Catalogue) -> None:
    async def plain(request: Request) -> Response | None:
        headers, path = request.headers, request.path_params
        if_match = headers.get("If-Match")
        if headers.get("Content-Type") != "application/json" or FALLBACKS in headers or len(if_match or "") > MAX_IF_MATCH:
            return None
        try:
            body = DecisionRequest.model_validate_json(await request.body())
            entry = catalogue.find(path.get("name"), path.get("version"), _pinned(if_match))
        except (ValidationError, LookupError, ClientDisconnect):
            return None  # FastAPI finds it too, and words the refusal.
        answer = await decide(body, request, entry, 0)
        return Response(answer.model_dump_json(), media_type="application/json", headers={"ETag": _etag(entry)})

    async def decided(
        body: DecisionRequest, request: Request, response: Response, entry: Annotated[Entry, Depends(choose)], fallbacks: Fallbacks = 0
    ) -> DecisionResponse:
        """The mixture of the next stage."""
        response.headers["ETag"] = _etag(entry)
        return await decide(body, request, entry, fallbacks)

    router.add_api_route(
        f"{prefix}/decisions",
        decided,
        methods=["POST"],
        responses=documented(400, 401, 404, 408, 412, 413, 422, 503),
        name="decide",
        route_class_override=short_way(plain),
    )


def _add_simulations(router: APIRouter, prefix: str, choose: Chooser, pool: DecisionPool, max_sources: int) -> None:
    @router.post(f"{prefix}/simulate", responses=documented(400, 401, 404, 408, 412, 413, 422, 503))
    async def simulated(body: DecisionRequest, request: Request, entry: Annotated[Entry, Depends(choose)]) -> SimulationResponse:
        """What the controller would have decided at every boundary of the run whose losses are given, up to and with the one described."""
        _admit(body, request, entry, max_sources)
        boundary = body.to_boundary()
        decisions = await pool.run(lambda: simulate(entry.controller, trajectory(boundary)))
        return SimulationResponse(decisions=decisions, controller=ControllerRef(name=entry.name, sha256=entry.sha256), request_id=body.request_id)


def _add_card(router: APIRouter, prefix: str, choose: Chooser) -> None:
    @router.get(prefix or "/controller", responses=documented(401, 404, 412, 422, 503))
    async def card(entry: Annotated[Entry, Depends(choose)]) -> dict[str, Any]:
        """Which controller this is and how it was trained."""
        version = {"version": entry.version} if prefix else {}
        return {**entry.controller.card, "name": entry.name, **version, "sha256": entry.sha256}


def _add_runs(router: APIRouter, runs: RecentRuns) -> None:
    @router.get("/runs", responses=documented(401))
    async def recent_runs() -> RunList:
        """The runs this replica has answered lately, by requests named `<run>/task<i>/stage<j>`."""
        return runs.summaries()

    @router.get("/runs/{run:path}", responses=documented(401, 404, 422))  # 404: a line break in the path is no route.
    async def recent_run(run: Annotated[str, Path(description="name of a run, see GET /v1/runs", max_length=256)]) -> RunDetail:
        """What this replica remembers of one run; no points where it has not heard of it."""
        return runs.detail(run)


def _pinned(if_match: str | None) -> str | None:
    """The hash that a header names; None: any will do."""
    return None if if_match in (None, "*") else if_match.strip().strip('"')


def _etag(entry: Entry) -> str:
    return f'"{entry.sha256}"'


def _admit(body: DecisionRequest, request: Request, entry: Entry, max_sources: int) -> None:
    """Notes the request for the log, and refuses what the controller cannot weigh."""
    request.state.request_id, request.state.controller = body.request_id, entry.label
    most = min(max_sources, entry.controller.max_sources or max_sources)
    if len(body.sources) > most:
        raise RequestValidationError(
            [{"loc": ("body", "sources"), "msg": f"this controller takes at most {most} sources", "input": len(body.sources)}]
        )


def _summary(catalogue: Catalogue, entry: Entry) -> ControllerSummary:
    is_default = catalogue.find(entry.name) is entry
    return ControllerSummary(
        name=entry.name, version=entry.version, sha256=entry.sha256, is_default=is_default, max_sources=entry.controller.max_sources
    )
