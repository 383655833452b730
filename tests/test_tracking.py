"""Trackers and metrics beside a run: the same numbers everywhere, nothing asked for nothing loaded, and no failure of theirs stops anything."""

import math
import struct
import sys
import threading
from types import SimpleNamespace

import pytest
from fake_metrics import FakeMetrics
from tensorboardX.proto.event_pb2 import Event

from proxymix import tracking
from proxymix.errors import UserError
from proxymix.telemetry import Telemetry
from proxymix.tracking import LIBRARIES, NoTracker, TrackingConfig, check_tracker, open_tracker, stage_step, stage_values
from proxymix.types import Decision, SourceReading, StageBoundary, StageRecord
from proxymix.watching import Watch, WatchedJournal

SOURCES = (
    SourceReading("safety", "anchor", (0.4, 0.5), 0.4),
    SourceReading("code@1", "past", (1.3,), 1.2),
    SourceReading("math", "current", (2.0,)),
)
BOUNDARY = StageBoundary(1, 2, 4, SOURCES)
WEIGHTS = {"safety": 0.25, "code@1": 0.25, "math": 0.5}


def record(fallback=None):
    decision = Decision(WEIGHTS, "served", "ab" * 32, fallback)
    return StageRecord("r", BOUNDARY, decision, {"math": 8}, 1.5, 1, 10, seconds={"train": 2.0, "validate": 0.5, "cpu": 2.5})


VALUES = {
    "replay_share": 0.5,
    "training_loss": 1.5,
    "fallback": 0.0,
    "weight/safety": 0.25,
    "weight/code@1": 0.25,
    "weight/math": 0.5,
    "loss/safety": 0.5,
    "loss/code@1": 1.3,
    "loss/math": 2.0,
}


def test_a_stage_in_numbers():
    assert stage_values(record()) == VALUES
    assert stage_values(record("away"))["fallback"] == 1.0
    assert stage_step(record()) == 6


def test_off_by_default_and_then_nothing_is_loaded(tmp_path, monkeypatch):
    for library in LIBRARIES.values():
        monkeypatch.setitem(sys.modules, library, None)  # Importing it would fail.
    check_tracker(TrackingConfig())
    assert isinstance(open_tracker(TrackingConfig(), "demo", "proxymix/seed0", tmp_path), NoTracker)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tracker", LIBRARIES)
def test_a_missing_library_is_told_with_its_remedy(tmp_path, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, LIBRARIES[tracker], None)
    for ask in (lambda config: check_tracker(config), lambda config: open_tracker(config, "demo", "r", tmp_path)):
        with pytest.raises(UserError, match=rf"tracking\.tracker: {tracker} needs .*pip install 'proxymix\[{tracker}\]'"):
            ask(TrackingConfig(tracker=tracker))


def tensorboard_scalars(folder):
    """(step, name, value) of the event files: each record is its length, a checksum, its bytes, a checksum."""
    for path in sorted(folder.rglob("events.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + size])
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
            at += 16 + size


def test_tensorboard_for_real(tmp_path):
    tracker = open_tracker(TrackingConfig(tracker="tensorboard"), "demo", "proxymix/seed0", tmp_path)
    tracker.log({"replay_share": 0.5, "loss/math": 2.0}, 6)
    tracker.close()
    assert list(tensorboard_scalars(tmp_path / "tensorboard" / "proxymix" / "seed0")) == [(6, "replay_share", 0.5), (6, "loss/math", 2.0)]


class FakeMLflow:
    """As much of MLflow's client as is used."""

    def __init__(self, calls, known):
        self.calls, self.known = calls, known

    def MlflowClient(self, tracking_uri):  # noqa: N802  as in mlflow
        self.calls.append(("client", tracking_uri))
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if self.known else None

    def create_experiment(self, name):
        self.calls.append(("experiment", name))
        return "8"

    def create_run(self, experiment_id, run_name):
        self.calls.append(("run", experiment_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="id"))

    def log_metric(self, run_id, name, value, step):
        self.calls.append((run_id, name, value, step))

    def set_terminated(self, run_id):
        self.calls.append(("end", run_id))


@pytest.mark.parametrize("known", [True, False])
def test_mlflow(tmp_path, monkeypatch, known):
    calls = []
    monkeypatch.setitem(sys.modules, "mlflow", FakeMLflow(calls, known))
    tracker = open_tracker(TrackingConfig(tracker="mlflow", address="http://mlflow"), "demo", "proxymix/seed0", tmp_path)
    tracker.log({"loss/code@1": 1.3}, 6)
    tracker.close()
    start = [("client", "http://mlflow"), ("run", "7", "proxymix/seed0")]
    if not known:
        start = [start[0], ("experiment", "demo"), ("run", "8", "proxymix/seed0")]
    assert calls == [*start, ("id", "loss/code_1", 1.3, 6), ("end", "id")]


def test_wandb(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("end"))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **kwargs: calls.append(kwargs) or run))
    tracker = open_tracker(TrackingConfig(tracker="wandb"), "demo", "proxymix/seed0", tmp_path)
    tracker.log({"replay_share": 0.5}, 6)
    tracker.close()
    started = {"project": "demo", "name": "proxymix/seed0", "entity": None, "dir": str(tmp_path), "reinit": "create_new"}
    assert calls == [started, ({"replay_share": 0.5}, 6), "end"]


class Notes:
    """A journal or a tracker that notes what it is told, or fails."""

    def __init__(self, fails=False):
        self.told, self.fails = [], fails

    def _note(self, *what):
        if self.fails:
            raise ConnectionError("the tracker's server is away")
        self.told.append(what)

    def log(self, values, step):
        self._note(values, step)

    def close(self):
        self._note("close")

    def stage_finished(self, run, record):
        self._note(record)

    def task_finished(self, run, task_index):
        self._note(task_index)


def watched(tracker, library, journal=None):
    watch = Watch(Telemetry(library), tracker, run="demo", method="proxymix", seed="0")
    return watch, WatchedJournal(journal or Notes(), watch)


def test_a_watched_journal_writes_first_and_then_tells():
    tracker, library, notes = Notes(), FakeMetrics(), Notes()
    watch, journal = watched(tracker, library, notes)
    journal.stage_finished(None, record())
    journal.stage_finished(None, record("away"))
    journal.task_finished(None, 1)
    watch.close()
    assert [len(notes.told), tracker.told[0], tracker.told[-1]] == [3, (VALUES, 6), ("close",)]
    tags = {"run": "demo", "method": "proxymix", "seed": "0"}
    assert [value for value in library.values if value[0] == "proxymix_fallbacks"] == [("proxymix_fallbacks", 1.0, tags)]
    assert ("proxymix_source_loss", 1.3, {**tags, "source": "code@1"}) in library.values
    assert [(name, v["phase"]) for name, _, v in library.values[:13] if "phase" in v] == [
        ("proxymix_stage_seconds", "train"),
        ("proxymix_stage_seconds", "validate"),
    ]


def test_who_watches_never_stops_what_is_watched(caplog):
    class Broken:
        def Counter(self, *args, **kwargs):  # noqa: N802
            raise RuntimeError("no metrics here")

    notes = Notes()
    watch, journal = watched(Notes(fails=True), Broken(), notes)
    for _ in range(2):
        journal.stage_finished(None, record())
    watch.close()
    assert len(notes.told) == 2
    assert [line.message for line in caplog.records] == ["metrics are off from here", "the tracker is off from here"]


def test_a_journal_that_fails_is_not_told_to_anybody():
    tracker = Notes()
    _, journal = watched(tracker, FakeMetrics(), Notes(fails=True))
    with pytest.raises(ConnectionError):
        journal.stage_finished(None, record())
    assert tracker.told == []


def test_a_trainings_iteration_is_told():
    tracker, library = Notes(), FakeMetrics()
    watch = Watch(Telemetry(library), tracker, run="demo")
    watch.iteration({"iteration": 3, "case": "a", "score_mean": 0.5, "num_dropped": 2, "reference_mean": None})
    assert tracker.told == [({"iteration": 3.0, "score_mean": 0.5, "num_dropped": 2.0}, 3)]
    assert [(name, value) for name, value, _ in library.values] == [
        ("proxymix_iterations", 1.0),
        ("proxymix_training_score", 0.5),
        ("proxymix_dropped_episodes", 2),
    ]
    assert all(math.isfinite(value) for _, value, _ in library.values)


def opened(tmp_path, monkeypatch, **wandb):
    """A tracker whose library is `wandb`'s functions."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(**wandb))
    return open_tracker(TrackingConfig(tracker="wandb"), "demo", "r", tmp_path)


def test_a_tracker_that_cannot_be_opened_is_left_out(tmp_path, monkeypatch, caplog):
    def refuse(**_):
        raise ConnectionError("no server")

    tracker = opened(tmp_path, monkeypatch, init=refuse)
    tracker.log({"replay_share": 0.5}, 0)
    tracker.close()
    assert "wandb could not be opened, the run goes on without it: no server" in caplog.text


def test_a_tracker_that_fails_later_is_told_once_and_left_alone(tmp_path, monkeypatch, caplog):
    def fail(values, step):
        raise ConnectionError("gone")

    tracker = opened(tmp_path, monkeypatch, init=lambda **_: SimpleNamespace(log=fail, finish=lambda: None))
    for step in range(5):
        tracker.log({}, step)
    tracker.close()
    assert [line.message for line in caplog.records] == ["tracking.tracker: wandb is off from here: gone"]


@pytest.mark.parametrize("hangs", ["init", "log", "finish"])
def test_a_tracker_that_hangs_keeps_nobody(tmp_path, monkeypatch, caplog, hangs):
    server = threading.Event()  # Until it answers, which is after all that is asserted.
    monkeypatch.setattr(tracking, "MAX_WAITING", 3)
    monkeypatch.setattr(tracking, "CLOSE_S", 0.1)

    def call(name):
        if name == hangs:
            server.wait()

    run = SimpleNamespace(log=lambda values, step: call("log"), finish=lambda: call("finish"))
    tracker = opened(tmp_path, monkeypatch, init=lambda **_: call("init") or run)
    watch, journal = watched(tracker, FakeMetrics())
    for _ in range(10):
        journal.stage_finished(None, record())
    watch.close()
    assert not server.is_set()
    said = [line.message for line in caplog.records]
    assert "has not caught up" in said[-1]
    if hangs != "finish":
        assert [line for line in said if "is 3 behind" in line] == said[:-1] != []
    server.set()
