"""The last decisions of running jobs, for looking at: a bounded memory of one replica, lost with it, that no decision depends on.

    POST /v1/decisions, request_id "<run>/task<i>/stage<j>" → RecentRuns.record → GET /v1/runs, GET /v1/runs/{run} → the page at /

Every replica remembers what it answered itself and says which replica it is; the page asks until it has heard them all.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from uuid import uuid4

from proxymix.types import Role
from services.schemas import DecisionRequest, DecisionResponse, WireModel

RUN_OF_REQUEST = re.compile(r"(?!(?:.*/)?\.\.?/)([^\x00-\x1f\x7f]+)/task\d+/stage\d+")
"""How a request is named that belongs to a run; what is named otherwise is answered and forgotten. No run has a `.` or `..` between slashes, nor a
control character: its name would not come through an address."""
MAX_RUNS = 64
"""The one not heard of for longest is forgotten first."""
MAX_READINGS = 50_000
"""Points times sources, over all runs; some ten megabytes."""
MAX_LATEST_LOSSES = 5_000
"""Losses of a run's last request that are kept whole."""


class PointSource(WireModel):
    """One source at one boundary."""

    name: str
    role: Role
    loss: float
    """The last one sent, nats per answer token."""
    reference_loss: float | None
    """At the end of the source's own task; null while it is current."""
    weight: float
    """Share of the next stage."""


class RunPoint(WireModel):
    """One decision of a run."""

    task_index: int
    stage_index: int
    num_stages: int
    time: float
    """Of the answer, seconds since 1970 by the service's clock."""
    controller: str
    """`name@version` of the one that decided."""
    fallbacks: int
    """Boundaries just before this one that the run had to decide itself, the service being away."""
    sources: list[PointSource]

    @property
    def position(self) -> tuple[int, int]:
        """Orders the points of a run; tasks may differ in their number of stages."""
        return self.task_index, self.stage_index


class RunSummary(WireModel):
    """One line of the list."""

    run: str
    updated: float
    """Time of the last decision."""
    task_index: int
    stage_index: int
    """Of the last decision."""
    num_stages: int
    num_points: int


class RunList(WireModel):
    """The runs that one replica has answered, the one heard of last first."""

    replica: str
    """Made up when the replica starts."""
    now: float
    """The service's clock, seconds since 1970."""
    runs: list[RunSummary]


class RunDetail(WireModel):
    """What one replica remembers of one run; no points where it has heard nothing of it, which another replica may have."""

    replica: str
    run: str
    points: list[RunPoint]
    """In the run's order; older ones may have been forgotten."""
    latest: DecisionRequest | None
    """The last request as it was sent; null if its histories are too long to keep."""


class _Run:
    def __init__(self) -> None:
        self.points: deque[RunPoint] = deque()
        self.latest: DecisionRequest | None = None


class RecentRuns:
    """The memory. Not for several threads: the event loop alone writes and reads."""

    def __init__(self, *, max_runs: int = MAX_RUNS, max_readings: int = MAX_READINGS, clock: Callable[[], float] = time.time) -> None:
        """Empty. Args: `clock` gives seconds since 1970; the limits are as the constants of their names."""
        self.max_runs, self.max_readings, self.clock = max_runs, max_readings, clock
        self.replica = uuid4().hex
        self.num_readings = 0
        self._runs: OrderedDict[str, _Run] = OrderedDict()  # The one not heard of for longest first.

    def record(self, request: DecisionRequest, response: DecisionResponse, controller: str, fallbacks: int = 0) -> None:
        """Remembers one answer, if its request's name says which run it belongs to.

        A repeated request replaces its point; a run that begins again, or resumes further back, loses the points that were ahead.

        Args:
            request: what was asked.
            response: what was answered.
            controller: `name@version`.
            fallbacks: boundaries just before this one that the run decided itself.
        """
        named = RUN_OF_REQUEST.fullmatch(request.request_id)
        if named is None:
            return
        point = self._point(request, response, controller, fallbacks)
        run = self._runs.setdefault(named[1], _Run())
        self._runs.move_to_end(named[1])
        while run.points and run.points[-1].position >= point.position:
            self.num_readings -= len(run.points.pop().sources)
        run.points.append(point)
        run.latest = request if sum(len(source.losses) for source in request.sources) <= MAX_LATEST_LOSSES else None
        self.num_readings += len(point.sources)
        self._forget()

    def summaries(self) -> RunList:
        """What there is."""
        return RunList(replica=self.replica, now=self.clock(), runs=[_summary(name, run) for name, run in reversed(self._runs.items())])

    def detail(self, name: str) -> RunDetail:
        """Everything remembered of one run."""
        run = self._runs.get(name, _Run())
        return RunDetail(replica=self.replica, run=name, points=list(run.points), latest=run.latest)

    def _point(self, request: DecisionRequest, response: DecisionResponse, controller: str, fallbacks: int) -> RunPoint:
        sources = [
            PointSource(
                name=source.name,
                role=source.role,
                loss=source.losses[-1],
                reference_loss=source.reference_loss,
                weight=response.weights[source.name],
            )
            for source in request.sources
        ]
        return RunPoint(
            task_index=request.task_index,
            stage_index=request.stage_index,
            num_stages=request.num_stages,
            time=self.clock(),
            controller=controller,
            fallbacks=fallbacks,
            sources=sources,
        )

    def _forget(self) -> None:
        """Until the limits hold: runs beyond their number, then the oldest points of whichever run was not heard of for longest."""
        while len(self._runs) > self.max_runs:
            self.num_readings -= sum(len(point.sources) for point in self._runs.popitem(last=False)[1].points)
        while self.num_readings > self.max_readings:
            name, run = next(iter(self._runs.items()))
            if len(self._runs) == 1 and len(run.points) == 1:
                return  # The last decision of the last run is always kept; a request cannot have more sources than its own limit.
            self.num_readings -= len(run.points.popleft().sources)
            if not run.points:
                del self._runs[name]


def _summary(name: str, run: _Run) -> RunSummary:
    last = run.points[-1]
    return RunSummary(
        run=name,
        updated=last.time,
        task_index=last.task_index,
        stage_index=last.stage_index,
        num_stages=last.num_stages,
        num_points=len(run.points),
    )
