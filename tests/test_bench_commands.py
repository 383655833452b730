"""`make bench` gives every benchmark what its parser takes; nothing is measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARSE = """
import runpy, sys
from argparse import ArgumentParser
from pathlib import Path

class Parsed(Exception):
    pass

def parse_and_stop(parser, parse=ArgumentParser.parse_args):
    arguments = parse(parser)
    assert Path(getattr(arguments, "config", None) or ".").exists()
    raise Parsed

ArgumentParser.parse_args = parse_and_stop
sys.path.insert(0, "benchmarks")  # As for a script.
for command in sys.stdin.read().splitlines():
    sys.argv = command.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except Parsed:
        print(sys.argv[0])
"""
"""One process for all, which share what takes long to import; it ends at the first that does not parse."""


@pytest.fixture(scope="module")
def commands():
    """A line for each benchmark, as the recipe's shell makes them of the files there are."""
    printed = subprocess.run(["make", "--dry-run", "bench", "PY=echo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (loop,) = [line for line in printed.splitlines() if line.startswith("for file in")]
    return subprocess.run(["sh", "-c", loop], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_benchmark_takes_what_it_is_given(commands):
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.py"))
    assert [command.split()[0] for command in commands.splitlines()] == files
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PARSE], input=commands, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("benchmarks/")] == files, done.stderr
