"""A full or slow disk, a clock that jumps, a network that is cut: no process is lost, and no number changes."""

import ast
import os
import random
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fake_service import client, frozen

from proxymix.artifacts import read_jsonl
from proxymix.continual import run_continual
from proxymix.controllers.baselines import Ramp, UniformReplay
from proxymix.errors import UserError
from proxymix.journal import RunJournal
from proxymix.service_config import ServiceConfig
from services.client import ServiceController

ROOT = Path(__file__).resolve().parents[1]
SERVED = frozen("equivariant")


@pytest.fixture
def tune(smoke_builder, smoke_case, base_folder, tmp_path):
    """Tunes to the end in the folder of that name, from wherever it stands; returns what is recorded there, without times."""

    def tune(folder, controller):
        run = smoke_builder.build(smoke_case)
        journal = RunJournal(tmp_path / folder, smoke_builder.learner, Path(base_folder))
        journal.resume(run)
        run_continual(run, controller, journal)
        return [{key: value for key, value in row.items() if key != "seconds"} for row in read_jsonl(journal.folder / "decisions.jsonl")]

    return tune


@contextmanager
def full_disk(num_bytes):
    """No file of this process may grow beyond `num_bytes`: a write fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("num_bytes", [0, 2_000, 50_000])
def test_a_full_disk_stops_the_run_and_it_resumes_to_the_same_numbers(tune, tmp_path, num_bytes):
    whole = tune("whole", Ramp(2.0))
    with full_disk(num_bytes), pytest.raises(UserError, match=r"could not write .*File too large.*(make|mend|see).* run the same command again"):
        tune("full", Ramp(2.0))
    assert not list((tmp_path / "full").rglob(".*"))
    assert not (tmp_path / "full" / "done").exists()
    assert tune("full", Ramp(2.0)) == whole


def test_a_slow_disk_changes_no_number(tune, monkeypatch):
    whole = tune("whole", Ramp(2.0))
    to_disk, writes = os.fsync, []

    def slow(descriptor):
        writes.append(descriptor)
        time.sleep(0.05)
        to_disk(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    assert tune("slow", Ramp(2.0)) == whole
    assert writes


class Network:
    """The way to the service; `is_up` tells by the request's body whether it holds."""

    def __init__(self, is_up):
        self.service, self.is_up = client(SERVED), is_up

    def controller(self):
        config = ServiceConfig(retries=1)
        transport = httpx.MockTransport(self.carry)
        return ServiceController("http://service", config, run="r", fallback=UniformReplay(0.3), transport=transport, sleep=lambda _: None)

    def carry(self, request):
        if not self.is_up(request.content):
            raise httpx.ConnectError("no route to host")
        answer = self.service.request(request.method, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(answer.status_code, content=answer.content)


def test_without_the_service_for_a_whole_task_the_fallback_decides_and_is_recorded(tune):
    cut = [tune(folder, Network(lambda body: b'"task_index":1' not in body).controller()) for folder in ("cut", "again")]
    assert [(row["task_index"], row["controller"]["name"]) for row in cut[0]] == [(0, SERVED.name)] * 2 + [(1, "random_30")] * 2
    assert [row["fallback"] for row in cut[0]] == [None, None] + ["controller service away: ConnectError: no route to host"] * 2
    assert cut[0] == cut[1]
    assert cut[0][:2] == tune("whole", Network(lambda body: True).controller())[:2]


def test_a_clock_that_jumps_changes_no_decision(tune, monkeypatch):
    whole = tune("whole", Network(lambda body: True).controller())
    rng = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(-1e9, 4e9))
    assert tune("jumps", Network(lambda body: True).controller()) == whole


WALL_CLOCK = {
    "services/connection.py": "a Retry-After that is a date, cut to [0, 30] s",
    "services/runs.py": "shown on the page, by which nothing is decided",
    "jobs/cli.py": "the minutes in a list of jobs",
    "jobs/run.py": "the time of an event in a log",
}
"""Who may read the clock that can jump, and what for; deadlines and durations are everywhere of the one that cannot."""


def test_nobody_else_reads_the_clock_that_can_jump():
    found = set()
    for path in [path for package in ("proxymix", "cluster", "services", "jobs") for path in (ROOT / package).rglob("*.py")]:
        names = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)}
        if names & {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.datetime.now"}:
            found.add(path.relative_to(ROOT).as_posix())
    assert found == set(WALL_CLOCK)
