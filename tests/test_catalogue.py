"""Several controllers behind one address: found by name, version and hash; loaded from anywhere, checked, replaced while asked."""

import json
import threading

import fsspec
import numpy as np
import pytest
from fake_service import Changed, changed, example, post, save
from fastapi.testclient import TestClient

from proxymix.controllers.frozen import CARD, WEIGHTS, FrozenController
from proxymix.errors import UserError
from services.app import build_app
from services.catalogue import Catalogue, entry_of, load_entries

A, B, C = "aa" * 32, "bb" * 32, "cc" * 32


def entry(name, version, sha256):
    return entry_of(Changed(name=name, sha256=sha256), version)


ENTRIES = (entry("mix", "2", B), entry("mix", "1", A), entry("other", "1", C))


@pytest.fixture
def catalogue():
    return Catalogue(ENTRIES)


@pytest.fixture
def service(catalogue):
    return TestClient(build_app(catalogue, token=None), raise_server_exceptions=False)


def ask(service, path, **headers):
    return service.post(path, content=json.dumps(example()), headers={"Content-Type": "application/json", **headers})


@pytest.mark.parametrize(
    ("prefix", "sha256"),
    [
        ("/v1", B),
        ("/v1/controllers/mix", B),
        ("/v1/controllers/mix/versions/1", A),
        ("/v1/controllers/mix/versions/2", B),
        ("/v1/controllers/other", C),
    ],
)
def test_a_controller_is_found_by_name_and_version(service, prefix, sha256):
    answer = ask(service, f"{prefix}/decisions")
    assert (answer.json()["controller"]["sha256"], answer.headers["ETag"]) == (sha256, f'"{sha256}"')
    assert service.get(prefix if prefix != "/v1" else "/v1/controller").json()["sha256"] == sha256


@pytest.mark.parametrize("path", ["/v1/controllers/none", "/v1/controllers/mix/versions/3", "/v1/controllers/other/versions/2"])
def test_one_that_is_not_there_is_404(service, path):
    assert ask(service, f"{path}/decisions").json()["detail"] == "no controller of that name and version; GET /v1/controllers lists them"
    assert service.get(path).status_code == 404


@pytest.mark.parametrize("name", ["..%2F..%2Fetc", "%2e%2e", "a%00b", "a" * 65, "s3:%2F%2Fbucket"])
def test_a_name_is_no_path(service, name):
    assert ask(service, f"/v1/controllers/{name}/decisions").status_code in (404, 422)


def test_a_pinned_hash_is_answered_by_its_version_or_by_none(service):
    assert ask(service, "/v1/decisions", **{"If-Match": f'"{A}"'}).json()["controller"]["sha256"] == A
    assert ask(service, "/v1/controllers/mix/decisions", **{"If-Match": "*"}).json()["controller"]["sha256"] == B
    for path, sha256 in (("/v1/decisions", C), ("/v1/controllers/mix/versions/2/decisions", A), ("/v1/decisions", "nonsense")):
        answer = ask(service, path, **{"If-Match": f'"{sha256}"'})
        assert (answer.status_code, answer.json()["detail"]) == (412, f"the controller changed: mix@2 has sha256 {B}, not {sha256}")


def test_the_list_says_which_answers_where(service):
    listed = service.get("/v1/controllers").json()
    assert listed["default"] == "mix@2"
    assert [(one["name"], one["version"], one["is_default"]) for one in listed["controllers"]] == [
        ("mix", "2", True),
        ("mix", "1", False),
        ("other", "1", True),
    ]


def test_nothing_loaded_is_alive_but_not_ready():
    service = TestClient(build_app(Catalogue(), token=None))
    assert service.get("/health/live").json() == {"status": "ok"}
    for answer in (service.get("/health/ready"), service.get("/v1/controllers"), service.get("/v1/controller"), ask(service, "/v1/decisions")):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_replacing_serves_the_new_and_keeps_the_pinned(service, catalogue):
    assert service.get("/health/ready").json() == {"status": "ready"}
    catalogue.replace([entry("mix", "3", C), *ENTRIES[:2]])
    assert ask(service, "/v1/decisions").json()["controller"]["sha256"] == C
    assert ask(service, "/v1/decisions", **{"If-Match": B}).json()["controller"]["sha256"] == B


def test_a_request_under_way_is_answered_by_the_controller_it_found():
    entered, release = threading.Event(), threading.Event()
    slow = Changed(name="mix", sha256=A)

    def decide(boundary):
        entered.set()
        release.wait(10)
        return Changed(name="mix", sha256=A).decide(boundary)

    vars(slow)["decide"] = decide
    catalogue, answers = Catalogue([entry_of(slow)]), []
    with TestClient(build_app(catalogue, token=None)) as service:
        asking = threading.Thread(target=lambda: answers.append(post(service, example())))
        asking.start()
        assert entered.wait(10)
        catalogue.replace([entry("mix", "2", B)])
        release.set()
        asking.join(10)
        assert [answers[0].json()["controller"]["sha256"], post(service, example()).json()["controller"]["sha256"]] == [A, B]


@pytest.mark.parametrize("entries", [[], [ENTRIES[0], ENTRIES[0]]])
def test_a_catalogue_is_never_empty_or_ambiguous(catalogue, entries):
    with pytest.raises(UserError, match="at least one, each with its own name and version"):
        catalogue.replace(entries)
    assert catalogue.entries == ENTRIES


def test_loads_folders_and_urls_alike(tmp_path):
    digest = save(tmp_path / "one", 0.1)
    files = fsspec.filesystem("memory")
    for name in (WEIGHTS, CARD):
        files.pipe(f"/bucket/one/{name}", (tmp_path / "one" / name).read_bytes())
    config = {"controllers": [{"path": str(tmp_path / "one")}, {"path": "memory://bucket/one/", "name": "remote", "version": "7", "sha256": digest}]}
    local, remote = load_entries(config)
    assert (local.label, local.sha256) == (f"served@{digest[:12]}", digest)
    assert (remote.label, remote.sha256, remote.controller.decide(_boundary()).controller) == ("remote@7", digest, "remote")
    assert remote.controller.decide(_boundary()).weights == FrozenController.load(tmp_path / "one").decide(_boundary()).weights


def _boundary():
    from services.schemas import DecisionRequest

    return DecisionRequest.model_validate(changed(["request_id"], "r")).to_boundary()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "nowhere"}, "cannot read 'nowhere'"),
        ({"path": "memory://nowhere"}, "cannot read 'memory://nowhere'"),
        ({"path": "nosuchsystem://bucket/x"}, "cannot read 'nosuchsystem://bucket/x'"),
        ({"path": "{folder}", "sha256": "ab" * 32}, "sha256 must be abab"),
        ({"path": "{folder}", "name": "../x"}, r"controllers\.0\.name"),
        ({"path": "{folder}", "pickle": "x"}, r"controllers\.0\.pickle"),
        ({}, r"controllers\.0\.path"),
    ],
)
def test_a_mistake_in_the_config_is_one_message(tmp_path, source, message):
    save(tmp_path, 0.1)
    source = {key: value.replace("{folder}", str(tmp_path)) for key, value in source.items()}
    with pytest.raises(UserError, match=message):
        load_entries({"controllers": [source]})


def test_what_is_damaged_or_badly_named_is_not_served(tmp_path):
    save(tmp_path, np.nan)
    with pytest.raises(UserError, match="cannot decide"):
        load_entries({"controllers": [{"path": str(tmp_path)}]})
    save(tmp_path, 0.1, name="no name")
    with pytest.raises(UserError, match="give the entry one"):
        load_entries({"controllers": [{"path": str(tmp_path)}]})
    assert load_entries({"controllers": [{"path": str(tmp_path), "name": "named"}]})[0].name == "named"
    (tmp_path / WEIGHTS).write_bytes(b"changed")
    with pytest.raises(UserError, match="sha256 must be"):
        load_entries({"controllers": [{"path": str(tmp_path), "name": "named"}]})
    (tmp_path / CARD).write_text("[]")
    with pytest.raises(UserError, match="must hold a mapping"):
        load_entries({"controllers": [{"path": str(tmp_path)}]})
