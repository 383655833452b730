"""Who may import whom, and how long things may be: read from the source with `ast`, nothing is run but two imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("proxymix", "cluster", "services", "jobs")
NUMERIC_CORE = ("mixture", "observation", "reward", "metrics", "mirroring", "guard")


def modules(*layers):
    return [path for layer in layers for path in sorted((ROOT / layer).rglob("*.py"))]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Every module named by an import anywhere in the file, inside functions too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def packages(path):
    return {name.partition(".")[0] for name in imports(path)}


def offenders(layers, forbidden):
    return {str(path.relative_to(ROOT)): packages(path) & forbidden for path in modules(*layers) if packages(path) & forbidden}


def test_there_is_something_to_check():
    assert all(modules(layer) for layer in LAYERS)


@pytest.mark.parametrize(
    ("layers", "forbidden"),
    [
        (["proxymix"], {"ray", "vllm", "fastapi", "cluster", "services", "jobs"}),
        (["cluster"], {"services", "jobs", "fastapi"}),
        (["services"], {"cluster", "jobs", "torch", "vllm"}),
        (LAYERS, {"tests"}),
    ],
)
def test_arrows_point_down(layers, forbidden):
    assert offenders(layers, forbidden) == {}


def has_name(started):
    """Whether the `x` of an `x.remote` is `….options(name=…)`."""
    return isinstance(started, ast.Call) and any(keyword.arg == "name" for keyword in started.keywords)


def test_whatever_ray_runs_for_us_has_a_name():
    """In its dashboard; the progress of a pre-training says nothing of its own."""
    nodes = [node for path in modules("cluster") for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute) and node.attr == "remote"]
    started = [node.value for node in nodes if ast.unparse(node.value) not in ("ray", "tally.read", "tally.update")]
    assert len(started) > 5
    assert [ast.unparse(value) for value in started if not has_name(value)] == []


def test_exactly_one_file_imports_vllm():
    assert list(offenders(LAYERS, {"vllm"})) == ["cluster/vllm_engine.py"]


@pytest.mark.parametrize("name", NUMERIC_CORE)
def test_the_numeric_core_needs_numpy_alone(name):
    own = {f"proxymix.{module}" for module in (*NUMERIC_CORE, "types")}
    foreign = {module.partition(".")[0] for module in imports(ROOT / "proxymix" / f"{name}.py") - own}
    assert foreign <= sys.stdlib_module_names | {"numpy"}


@pytest.mark.parametrize("module", ["proxymix", "proxymix.controllers.frozen"])
def test_serving_needs_no_torch(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'ray', 'transformers', 'pydantic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_modules_are_short_and_say_what_they_are():
    too_long = {str(p.relative_to(ROOT)): n for p in modules(*LAYERS) if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300}
    assert too_long == {}
    assert [str(p.relative_to(ROOT)) for p in modules(*LAYERS) if not ast.get_docstring(tree(p))] == []


def test_functions_are_short():
    def longest(path):
        return {
            f"{path.relative_to(ROOT)}:{node.name}": length
            for node in ast.walk(tree(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := node.end_lineno - node.lineno + 1) > 60
        }

    assert {name: length for path in modules(*LAYERS) for name, length in longest(path).items()} == {}


def test_no_drawers_for_everything():
    names = {path.stem for path in modules(*LAYERS)}
    assert not names & {"utils", "util", "common", "helpers", "helper", "misc"}
    classes = {node.name for path in modules(*LAYERS) for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)}
    assert [name for name in classes if name.startswith("Base") or name.endswith("Manager")] == []
