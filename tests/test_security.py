"""What the threat model promises of the source: nothing is unpickled, evaluated or loaded unsafely, here or by what we ask of libraries."""

import ast
import hashlib
import json
import pickle
from pathlib import Path

import pytest
from fake_service import save

from proxymix.controllers.frozen import CARD, WEIGHTS
from proxymix.errors import UserError
from services.catalogue import load_entries

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for layer in ("proxymix", "services", "cluster", "jobs") for path in sorted((ROOT / layer).rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "os.system", "os.popen"}
FORBIDDEN_KEYWORDS = {"allow_pickle", "trust_remote_code", "shell"}


def offences(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            yield from {(node.module or "").partition(".")[0]} & FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            yield from {ast.unparse(node.func)} & FORBIDDEN_CALLS
            yield from {keyword.arg for keyword in node.keywords} & FORBIDDEN_KEYWORDS


def test_no_source_unpickles_evaluates_or_loads_unsafely():
    assert {str(path.relative_to(ROOT)): found for path in SOURCES if (found := list(offences(path)))} == {}


def test_the_search_can_find_something(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("import pickle\nfrom joblib import load\nyaml.load(x)\nnp.load(x, allow_pickle=True)\neval('1')\n")
    assert sorted(offences(bad)) == ["allow_pickle", "eval", "joblib", "pickle", "yaml.load"]


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
