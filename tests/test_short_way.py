"""The short way to a decision: nobody can tell it from FastAPI's own, which a Content-Type with a parameter makes a request take."""

import json

import pytest
from fake_service import SHA256, LossProportional, changed, client, example
from hypothesis import given, settings
from hypothesis import strategies as st

from services.catalogue import Catalogue, entry_of
from services.schemas import DecisionRequest

CATALOGUE = Catalogue([entry_of(LossProportional(), "1"), entry_of(LossProportional(), "2")])
SERVICE = client(CATALOGUE, max_sources_per_request=3)
ADDRESSES = ("/v1/decisions", "/v1/controllers/fake/decisions", "/v1/controllers/fake/versions/2/decisions", "/v1/controllers/who/decisions")
KEYS = st.sampled_from([[key] for key in example()] + [["sources", 0, key] for key in example()["sources"][0]])
VALUES = st.sampled_from([..., None, True, 0, 1, -1, 10**30, 0.5, -0.0, float("nan"), "", "0", "current", "\ud800", [], [0.5], [1], ["1"], {}])


def answers(address, body, **headers):
    """Status, answer and hash by the short way and by the long."""
    types = ("application/json", "application/json; charset=utf-8")
    heard = [SERVICE.post(address, content=body, headers={"Content-Type": kind, **headers}) for kind in types]
    return [(one.status_code, one.headers["Content-Type"], one.json(), one.headers.get("ETag")) for one in heard]


@settings(max_examples=150, deadline=None)
@given(KEYS, VALUES, st.sampled_from(ADDRESSES))
def test_whatever_stands_in_the_body_both_ways_answer_alike(path, value, address):
    short, long = answers(address, json.dumps(changed(path, value)).encode())
    assert short == long


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"[" * 1000,
        json.dumps(example()).encode("utf-16"),
        json.dumps({**example(), "more": 1}).encode(),
    ],
)
def test_whatever_is_no_boundary_both_ways_refuse_alike(body):
    short, long = answers("/v1/decisions", body)
    assert short == long


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(0, 1e6) | st.integers(0, 10**6), min_size=1), st.text(min_size=1, max_size=5), st.booleans())
def test_numbers_and_texts_are_read_alike_to_the_last_bit(losses, name, ascii_only):
    sources = [{"name": name, "role": "current", "losses": losses}]
    body = json.dumps({**example(), "request_id": name, "sources": sources}, ensure_ascii=ascii_only).encode()
    assert DecisionRequest.model_validate_json(body) == DecisionRequest.model_validate(json.loads(body))


def test_of_a_key_that_is_there_twice_both_ways_take_the_last():
    body = json.dumps(example()).replace('"request_id"', '"request_id": "first", "request_id"').encode()
    short, long = answers("/v1/decisions", body)
    assert short == long
    assert short[2]["request_id"] == example()["request_id"]


@pytest.mark.parametrize("if_match", ["*", f'"{SHA256}"', SHA256, '"other"', '"' * 80])
@pytest.mark.parametrize("body", [example(), {}])
def test_a_pinned_hash_means_the_same_both_ways(if_match, body):
    short, long = answers("/v1/decisions", json.dumps(body).encode(), **{"If-Match": if_match})
    assert short == long


@pytest.mark.parametrize("fallbacks", ["2", "-1", "x"])
def test_fallbacks_mean_the_same_both_ways(fallbacks):
    short, long = answers("/v1/decisions", json.dumps(example()).encode(), **{"X-Proxymix-Fallbacks": fallbacks})
    assert short == long


def test_an_ordinary_request_takes_the_short_way(monkeypatch):
    monkeypatch.setattr("fastapi.routing.solve_dependencies", None)
    assert SERVICE.post("/v1/decisions", json=example()).status_code == 200
