"""docs/failures.md speaks of every fault it must, each with a test or a word that there is none. That named tests exist: test_named_tests.py."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROWS = [line.split("|")[1:4] for line in (ROOT / "docs" / "failures.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]


def test_every_row_names_a_test_or_says_that_nothing_shows_it():
    assert [row[0] for row in ROWS if "`tests/" not in row[2] and "**not shown**" not in row[2]] == []


@pytest.mark.parametrize(
    "fault",
    ["env runner", "evaluator", "replica", "Train worker", "driver", "worker node", "head node", "disk is full", "disk is slow", "clock", "network"],
)
def test_every_fault_has_its_row(fault):
    assert any(fault in row[0] for row in ROWS)
