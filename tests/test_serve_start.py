"""When Ray Serve starts: beside the learning of the controller or after it, and what is left if that fails. Serve itself is faked."""

import threading
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from proxymix.config import ServiceConfig
from proxymix.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    import jobs.serve_controller as serve_controller

PATIENCE_S = 30.0


class LearningFailedError(Exception):
    pass


@pytest.fixture
def run():
    service = ServiceConfig()
    run = SimpleNamespace(config=SimpleNamespace(service=service), app="test", events=[])
    run.meanwhile = lambda name, seconds: run.events.append(name)
    return run


@pytest.fixture
def serve(run, monkeypatch):
    """Serve, which starts as soon as it is allowed to."""
    serve = SimpleNamespace(may_start=threading.Event(), started=threading.Event(), error=None)

    def start(service):
        assert serve.may_start.wait(PATIENCE_S)
        if serve.error is not None:
            raise serve.error
        run.events.append("serve is up")
        serve.started.set()

    monkeypatch.setattr(serve_controller, "start_serve", start)
    monkeypatch.setattr(serve_controller, "undeploy", lambda name: run.events.append("serve is down"))
    monkeypatch.setattr(serve_controller, "spare_cores", lambda config: 1)
    return serve


def is_starting():
    return any(thread.name == "serve-start" for thread in threading.enumerate())


def test_starts_while_the_controller_is_learnt(run, serve):
    with serve_controller.serve_starting(run):
        run.events.append("learning begins")
        serve.may_start.set()
        assert serve.started.wait(PATIENCE_S)
        run.events.append("learning ends")
    assert run.events == ["learning begins", "serve is up", "learning ends", "start_serve"]
    assert not is_starting()


def test_is_waited_for_when_learning_is_faster(run, serve):
    with serve_controller.serve_starting(run):
        run.events.append("learning ends")
        threading.Timer(0.1, serve.may_start.set).start()
    assert run.events == ["learning ends", "serve is up", "start_serve"]
    assert not is_starting()


@pytest.mark.parametrize("given", [{"url": "http://elsewhere:1"}, {}])
def test_does_not_start_where_no_core_is_spare_or_the_service_is_given(run, serve, monkeypatch, given):
    run.config.service = ServiceConfig(**given)
    monkeypatch.setattr(serve_controller, "spare_cores", lambda config: 0 if not given else 1)
    with serve_controller.serve_starting(run):
        assert not is_starting()
    assert run.events == []


def test_goes_when_learning_fails_and_leaves_no_thread(run, serve):
    def learn():
        with serve_controller.serve_starting(run):
            serve.may_start.set()
            raise LearningFailedError

    with pytest.raises(LearningFailedError):
        learn()
    assert run.events == ["serve is up", "serve is down"]
    assert not is_starting()


def test_why_it_could_not_start_is_told_by_the_deployment(run, serve, monkeypatch, tmp_path):
    serve.error = UserError("service.port: taken")
    serve.may_start.set()
    with serve_controller.serve_starting(run):
        run.events.append("learning ends")
    assert run.events == ["learning ends"]
    run.folder, run.phase = tmp_path, nullcontext
    monkeypatch.setattr(serve_controller, "deploy", lambda folder, service, name, route_prefix: serve_controller.start_serve(service))
    with pytest.raises(UserError, match="taken"), serve_controller.serving(run):
        pass


@pytest.mark.parametrize(("cores", "free", "runners", "spare"), [(2, 7, 2, 0), (8, 15, 2, 6), (16, 3, 2, 1), (2, 7, 0, 1)])
def test_cores_are_spare_beyond_the_env_runners(monkeypatch, cores, free, runners, spare):
    from cluster import session

    monkeypatch.setattr(session.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(session.ray, "available_resources", lambda: {"CPU": float(free)})
    config = SimpleNamespace(started_env_runners=runners)
    assert session.spare_cores(config) == spare
