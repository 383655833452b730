"""docs/failures.md names only tests that exist, and every fault it must speak of."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [line.split("|")[1:4] for line in (ROOT / "docs" / "failures.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
NAMED = sorted({name for row in ROWS for name in re.findall(r"`(tests/[^`]+)`", row[2])})


def functions_of(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name):
    file, test = name.split("::")
    assert test.startswith("test_")
    assert test in functions_of(ROOT / file)


def test_every_row_names_a_test_or_says_that_nothing_shows_it():
    assert [row[0] for row in ROWS if "`tests/" not in row[2] and "**not shown**" not in row[2]] == []


@pytest.mark.parametrize(
    "fault",
    ["env runner", "evaluator", "replica", "Train worker", "driver", "worker node", "head node", "disk is full", "disk is slow", "clock", "network"],
)
def test_every_fault_has_its_row(fault):
    assert any(fault in row[0] for row in ROWS)
