"""The service under whatever a client may send: any boundary gets a mixture, nothing gets a 5xx, every answer is as the OpenAPI document says."""

import asyncio
import math

import pytest
import schemathesis
from fake_service import LossProportional, changed, client, example, frozen, post
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.service_fuzz import Answer, Ask, application, ask, encoded, faults, fuzz
from proxymix.types import SourceReading, StageBoundary
from services.app import QUICK_LOSSES, build_app
from services.catalogue import Catalogue, entry_of
from services.schemas import DecisionRequest, DecisionResponse

CHECKS = {
    # The document cannot say what holds between fields (one source is current, …), so not all that fits it is accepted.
    "positive_data_acceptance": {"enabled": False},
    # Other weights than the ones named by If-Match: 412, before the body is judged.
    "negative_data_rejection": {"expected-statuses": ["400", "401", "404", "405", "412", "413", "422"]},
}
CATALOGUE = Catalogue([entry_of(frozen("equivariant"), "1"), entry_of(frozen("flat"), "1"), entry_of(LossProportional(), "2")])
DEPLOYED = build_app(CATALOGUE, token="sesame", quick_losses=QUICK_LOSSES)
DOCUMENT = schemathesis.openapi.from_asgi("/openapi.json", DEPLOYED, config=schemathesis.Config.from_dict({"checks": CHECKS}))


@DOCUMENT.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(case):
    case.call_and_validate(headers={"Authorization": "Bearer sesame"})


@pytest.fixture(scope="module")
def service():
    return client(quick_losses=QUICK_LOSSES)


losses = st.floats(0, 1e6)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@st.composite
def boundaries(draw):
    labels = draw(st.lists(names, min_size=1, max_size=8, unique=True))
    current = draw(st.integers(0, len(labels) - 1))
    histories = [tuple(draw(st.lists(losses, min_size=1, max_size=5))) for _ in labels]
    readings = [
        SourceReading(
            name,
            "current" if i == current else draw(st.sampled_from(["anchor", "past"])),
            history,
            None if i == current else draw(losses),
            draw(st.integers(0, len(history) - 1)),
            draw(st.integers(1, 5)),
        )
        for i, (name, history) in enumerate(zip(labels, histories, strict=True))
    ]
    num_stages = draw(st.integers(1, 50))
    return StageBoundary(draw(st.integers(0, 1000)), draw(st.integers(0, num_stages - 1)), num_stages, tuple(readings))


CONTROLLERS = [LossProportional(), frozen("equivariant"), frozen("flat")]
SERVICES = {controller.name: client(controller, quick_losses=QUICK_LOSSES) for controller in CONTROLLERS}


@pytest.mark.parametrize("controller", CONTROLLERS, ids=list(SERVICES))
@settings(max_examples=50, deadline=None)
@given(boundary=boundaries())
def test_any_boundary_gets_weights_on_the_simplex_over_exactly_its_sources(controller, boundary):
    service = SERVICES[controller.name]
    answer = post(service, DecisionRequest.from_boundary(boundary, "r").model_dump_json(exclude_none=True).encode())
    assert answer.status_code == 200
    response = DecisionResponse.model_validate_json(answer.content)
    decision = response.to_decision(boundary)
    assert tuple(decision.weights) == boundary.names
    assert math.fsum(decision.weights.values()) == pytest.approx(1.0)
    assert min(decision.weights.values()) >= 0
    assert response.replay_share == pytest.approx(1.0 - decision.weights[boundary.current.name])
    assert decision == controller.decide(boundary)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3),
    max_leaves=6,
)
paths = st.sampled_from(
    [[key] for key in example()] + [["sources", i] for i in range(3)] + [["sources", 0, k] for k in example()["sources"][0]] + [["sources", 1, "x"]]
)


@settings(max_examples=150, deadline=None)
@given(paths, anything)
def test_no_body_gets_a_5xx(service, path, value):
    answer = post(service, changed(path, value))
    assert answer.status_code in (200, 422)
    answer.json()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=50))
def test_no_bytes_get_a_5xx(service, body):
    assert post(service, body).status_code in (400, 422)


def test_a_boundary_outside_the_format_is_refused_before_it_is_sent():
    boundary = DecisionRequest.model_validate(example()).to_boundary()
    bad = StageBoundary(0, 0, 1, (SourceReading("math", "current", (math.nan,)), *boundary.sources[:2]))
    with pytest.raises(ValidationError):
        DecisionRequest.from_boundary(bad, "r")


def test_a_sample_of_the_benchmarks_requests_has_no_fault():
    statuses, wrong = asyncio.run(fuzz(1000, seed=1))
    assert wrong == []
    assert {200, 400, 404, 405, 413, 422} <= set(statuses)


def test_a_declared_length_that_is_a_digit_but_no_number_is_no_5xx():
    """Python calls a superscript two a digit; the hundred thousand requests of the benchmark found it."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"\xb2")]
    assert asyncio.run(ask(application(), Ask(body=encoded(example()), headers=headers))).status == 200


def answered(**changes):
    weights = {"safety": 0.25, "code": 0.25, "math": 0.5}
    body = {"weights": weights, "replay_share": 0.5, "controller": {"name": "c", "sha256": "0" * 64}, "request_id": "r"} | changes
    return Answer(200, encoded(body))


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (answered(), None),
        (answered(weights={"safety": 0.25, "code": 0.25, "math": 0.6}), "sum to 1"),
        (answered(weights={"safety": -0.5, "code": 0.5, "math": 1.0}), "greater than or equal to 0"),
        (answered(weights={"safety": 0.25, "later": 0.25, "math": 0.5}), "unseen source"),
        (answered(weights={"safety": 0.5, "math": 0.5}), "without a weight"),
        (answered(more=1), "not as the schema says"),
        (Answer(422, b"{}"), "refused"),
        (Answer(500, b""), "status 500"),
        (Answer(), "status 0"),
    ],
)
def test_the_benchmark_sees_what_is_wrong(answer, fault):
    found = faults(Ask(body=encoded(example()), is_sound=True), answer)
    assert any(fault in one for one in found) if fault else found == []
