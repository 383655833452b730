"""The container image is made from the pinned lists, fetches no scripts, and runs as nobody's root."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "cluster" / "docker" / "Dockerfile"


def instructions():
    """(instruction, rest) of the Dockerfile."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def test_the_image_is_pinned_and_nobodys_root():
    found = instructions()
    assert {name for name, _ in found} <= {"ARG", "FROM", "ENV", "RUN", "COPY", "WORKDIR", "USER", "CMD"}
    (base,) = [rest for name, rest in found if rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-\w+", base)
    assert {rest.split()[0] for name, rest in found if name == "FROM"} == {"python:${PYTHON}"}
    assert [rest for name, rest in found if name == "USER"] == ["1000:1000"]
    assert found.index(("USER", "1000:1000")) > max(index for index, (name, _) in enumerate(found) if name == "RUN")


def test_the_image_is_installed_from_the_projects_own_lists():
    runs = [rest for name, rest in instructions() if name == "RUN"]
    assert [run for run in runs if re.search(r"\b(curl|wget)\b[^&]*\|", run)] == []
    installs = [run for run in runs if "pip install" in run]
    assert [run for run in installs if "--no-deps" not in run] == []
    assert '-r "requirements/$REQUIREMENTS.txt"' in installs[0]
    copied = {word.rstrip("/") for name, rest in instructions() if name == "COPY" and "--from" not in rest for word in shlex.split(rest)[:-1]}
    assert {path for path in copied if not (ROOT / path).exists()} == set()
    assert copied >= {"proxymix", "cluster", "services", "jobs", "requirements"}
    assert "libnuma1" in runs[-1].split()  # vLLM's compiled part for CPUs stands on it, and no package brings it along.
    assert {(ROOT / "requirements" / f"{kind}.txt").exists() for kind in ("cpu", "gpu")} == {True}
