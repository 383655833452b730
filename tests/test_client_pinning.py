"""The client against an application with several controllers: it names one, pins its hash, and simulates."""

import warnings

import httpx
import pytest
from fake_service import Changed, example
from fastapi.testclient import TestClient

from proxymix.answers import AskedOnce
from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.service_config import ServiceConfig
from services.app import build_app
from services.catalogue import Catalogue, entry_of
from services.client import ServiceController, check_reachable
from services.schemas import DecisionRequest

URL, A, B = "http://service", "aa" * 32, "bb" * 32
BOUNDARY = DecisionRequest.model_validate(example()).to_boundary()
FIRST = DecisionRequest(
    request_id="r", task_index=0, stage_index=0, num_stages=4, sources=[{"name": "math", "role": "current", "losses": [2.0]}]
).to_boundary()


def entry(name, sha256):
    return entry_of(Changed(name=name, sha256=sha256))


@pytest.fixture
def catalogue():
    return Catalogue([entry("mix", A), entry("other", B)])


@pytest.fixture
def transport(catalogue):
    with TestClient(build_app(catalogue, token=None)) as application:

        def forward(request):
            headers = {key: value for key, value in request.headers.items() if key != "host"}
            served = application.request(request.method, request.url.path, content=request.content, headers=headers)
            return httpx.Response(served.status_code, headers=served.headers, content=served.content)

        yield httpx.MockTransport(forward)


def controller(transport, slept=None, sha256=None, **service):
    sleep = (lambda _: None) if slept is None else slept
    return ServiceController(URL, ServiceConfig(**service), run="run", fallback=UniformReplay(0.3), sha256=sha256, transport=transport, sleep=sleep)


@pytest.mark.parametrize(("named", "sha256"), [(None, A), ("other", B), (f"other@{B[:12]}", B)])
def test_the_config_names_the_controller(transport, named, sha256):
    service = ServiceConfig(controller=named)
    assert check_reachable(URL, service, transport=transport).sha256 == sha256
    assert controller(transport, controller=named).decide(BOUNDARY).sha256 == sha256


def test_a_name_the_service_does_not_know_is_told(transport):
    with pytest.raises(UserError, match="404"):
        check_reachable(URL, ServiceConfig(controller="none", retries=0), transport=transport)


def test_a_run_goes_on_with_its_controller_while_the_service_keeps_it(transport, catalogue):
    running = controller(transport)
    assert running.decide(BOUNDARY).sha256 == A
    catalogue.replace([entry("mix", B), entry("mix", A)])
    assert running.decide(BOUNDARY).sha256 == A
    assert controller(transport).decide(BOUNDARY).sha256 == B
    catalogue.replace([entry("mix", B)])
    with pytest.raises(UserError, match=rf"controller changed during run 'run', from sha256 {A} to .*mix@{B[:12]}"):
        running.decide(BOUNDARY)


def test_a_run_that_is_gone_on_with_keeps_its_controller(transport, catalogue, tmp_path):
    """Whoever starts it again asks the service anew which controller it has, and that may be another by then."""

    def start():
        found = check_reachable(URL, ServiceConfig(), transport=transport).sha256
        return AskedOnce(lambda began_with: controller(transport, sha256=began_with or found), tmp_path / "answers.jsonl")

    assert start().decide(FIRST).sha256 == A
    catalogue.replace([entry("mix", B)])
    gone_on_with = start()
    assert gone_on_with.decide(FIRST).sha256 == A  # As was answered before the stage that was interrupted.
    with pytest.raises(UserError, match=rf"^service.url: the controller changed .* from sha256 {A} to .*mix@{B[:12]}.*; serve the first one again"):
        gone_on_with.decide(BOUNDARY)
    catalogue.replace([entry("mix", B), entry("mix", A)])
    assert start().decide(BOUNDARY).sha256 == A


def test_what_tunes_the_target_holds_the_run_to_the_controller_it_began_with(smoke_config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
        from jobs.serve_controller import Served
        from jobs.tune_target import controller_for
    pins = [controller_for(smoke_config, Served(URL, B), None, None, 0, began_with).sha256 for began_with in (None, A)]
    assert pins == [B, A]


def test_a_replica_in_the_middle_of_an_update_costs_only_a_retry(transport, catalogue):
    def updated(_):
        catalogue.replace([entry("mix", B)])

    assert controller(transport, slept=updated, sha256=B).decide(BOUNDARY).sha256 == B


def test_simulates(transport):
    (decision,) = controller(transport).simulate(FIRST)
    assert decision.weights == {"math": 1.0}
    with pytest.raises(UserError, match=r"422.*an anchor has a loss for each"):
        controller(transport).simulate(BOUNDARY)


@pytest.mark.parametrize(("answer", "message"), [(httpx.Response(503), "not reachable"), (httpx.Response(200, text="<html>"), "no simulation")])
def test_a_simulation_has_no_fallback(answer, message):
    transport = httpx.MockTransport(lambda request: httpx.Response(answer.status_code, content=answer.content))
    with pytest.raises(UserError, match=message):
        controller(transport, retries=1).simulate(FIRST)
