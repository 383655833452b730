"""What the threat model promises of the source: nothing is unpickled, evaluated or loaded unsafely, here or by what we ask of libraries."""

import ast
import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from fake_service import save

from proxymix.controllers.frozen import CARD, WEIGHTS
from proxymix.errors import UserError
from proxymix.learners.models import load_causal
from services.catalogue import load_entries

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for layer in ("proxymix", "services", "cluster", "jobs") for path in sorted((ROOT / layer).rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "os.system", "os.popen"}
FORBIDDEN_CALLS |= {f"yaml.{name}" for name in ("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all")}
FORBIDDEN_KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}
MODELS = re.compile(r"AutoModel\w*\.from_pretrained")
"""Reads whatever weights there are, pickles too, unless told otherwise."""


def offences(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from set(alias.name.split(".")) & FORBIDDEN_MODULES
                if alias.asname and any(call.startswith(f"{alias.name}.") for call in FORBIDDEN_CALLS):
                    yield f"{alias.name} as {alias.asname}"  # Its calls could not be found by name.
        elif isinstance(node, ast.ImportFrom):
            yield from {*(node.module or "").split("."), *(alias.name for alias in node.names)} & FORBIDDEN_MODULES
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & FORBIDDEN_CALLS
        elif isinstance(node, ast.Attribute):
            yield from {node.attr} & FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            yield from {called} & FORBIDDEN_CALLS
            yield from set(given) & FORBIDDEN_KEYWORDS
            if MODELS.fullmatch(called) and given.get("use_safetensors") != "True":
                yield called


def test_no_source_unpickles_evaluates_or_loads_unsafely():
    assert {str(path.relative_to(ROOT)): found for path in SOURCES if (found := list(offences(path)))} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "joblib"),
        ("import ray.cloudpickle", "cloudpickle"),
        ("from ray import cloudpickle", "cloudpickle"),
        ("from ray.cloudpickle import loads", "cloudpickle"),
        ("ray.cloudpickle.loads(x)", "cloudpickle"),
        ("yaml.load(x)", "yaml.load"),
        ("yaml.load_all(x)", "yaml.load_all"),
        ("from yaml import load", "yaml.load"),
        ("import yaml as y", "yaml as y"),
        ("from torch import load", "torch.load"),
        ("np.load(x, allow_pickle=True)", "allow_pickle"),
        ("eval('1')", "eval"),
        ("AutoModelForCausalLM.from_pretrained(x)", "AutoModelForCausalLM.from_pretrained"),
        ("AutoModel.from_pretrained(x, use_safetensors=False)", "AutoModel.from_pretrained"),
    ],
)
def test_the_search_finds_it(tmp_path, line, found):
    (tmp_path / "bad.py").write_text(line)
    assert list(offences(tmp_path / "bad.py")) == [found]


def test_the_search_leaves_alone_what_is_safe(tmp_path):
    lines = ["import yaml", "from yaml import safe_load", "yaml.safe_load_all(x)", "AutoModel.from_pretrained(x, use_safetensors=True)"]
    (tmp_path / "good.py").write_text("\n".join([*lines, "AutoTokenizer.from_pretrained(x)"]))
    assert list(offences(tmp_path / "good.py")) == []


class Bomb:
    """Unpickling it would run code."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_in_place_of_weights_is_refused_unread(tmp_path):
    save(tmp_path, 0.1)
    bomb = pickle.dumps(Bomb())
    (tmp_path / WEIGHTS).write_bytes(bomb)
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**card, "sha256": hashlib.sha256(bomb).hexdigest()}))
    with pytest.raises(UserError, match="cannot decide"):
        load_entries({"controllers": [{"path": str(tmp_path)}]})


def test_a_model_whose_weights_are_a_pickle_is_refused_unread(tmp_path, base_folder):
    shutil.copy(Path(base_folder) / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match=r"cannot load the model .* its weights must be in safetensors: convert"):
        load_causal(str(tmp_path), torch.float32)


class BegunError(Exception):
    """Ray would start now."""


@pytest.mark.parametrize("found", [None, 0o644])
def test_rays_token_is_its_users_alone_before_a_ray_of_a_jobs_own_starts(tmp_path, monkeypatch, smoke_config, found):
    from cluster import session

    token = tmp_path / ".ray" / "auth_token"
    if found is not None:
        token.parent.mkdir()
        token.write_text("of Ray's own making")
        token.chmod(found)

    def init(**_):
        assert token.read_text()
        assert token.stat().st_mode & 0o777 == 0o600
        raise BegunError

    monkeypatch.setattr(session.os, "environ", {"HOME": str(tmp_path)})
    for step in ("_check_memory", "_on_loopback"):
        monkeypatch.setattr(session, step, lambda *_: {})
    monkeypatch.setattr(session.ray, "init", init)
    with pytest.raises(BegunError), session.ray_session(smoke_config):
        pass
