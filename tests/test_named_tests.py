"""Every test that a page of the documentation names exists, and the promises of the threat model name theirs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAME = re.compile(r"`(?:tests/)?(test_\w+\.py)(?:::(\w+))?`")
NAMED = sorted({(page.name, *found) for page in PAGES for found in NAME.findall(page.read_text(encoding="utf-8"))})


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("page", "file", "test"), NAMED)
def test_a_named_test_exists(page, file, test):
    found = functions_of(ROOT / "tests" / file)
    assert any(name.startswith("test_") for name in found)
    assert not test or test in found


def test_the_pages_that_promise_something_are_read():
    assert {"failures.md", "threat-model.md"} <= {page for page, *_ in NAMED}


def section(title):
    """Bullets of the threat model's section, each with its further lines."""
    text = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
    body = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [bullet for bullet in re.split(r"\n- ", body) if bullet.strip()]


def test_what_the_service_does_names_its_test():
    bullets = section("What the service does about it")
    assert len(bullets) > 5
    assert [bullet for bullet in bullets if not NAME.search(bullet)] == []
