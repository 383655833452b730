"""A GPU machine may have torch and little else: what is meant to run there imports nothing more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("ray", "vllm", "pydantic", "fastapi", "gymnasium", "datasets", "peft", "transformers")
WITHOUT = f"""
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
sys.argv = ["stacked_proxies.py", "--device", "cpu", "--stacked", "2", "--processes", "--seconds", "0.1", "--rounds", "1"]
runpy.run_path("benchmarks/stacked_proxies.py", run_name="__main__")
"""


def test_the_gpu_benchmark_needs_torch_alone():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["stages_per_second"]["stacked"]["2"][0] > 0


TINY = """
import runpy, sys
for name in {absent!r}:
    sys.modules[name] = None  # As if it were not installed.
sys.argv = ["train_8b.py", "--tiny", "--rounds", "1", "--steps", "1", "--packs", "2"]
runpy.run_path("benchmarks/train_8b.py", run_name="__main__")
"""
BARE = ("ray", "vllm", "pydantic", "fastapi", "gymnasium", "datasets", "peft", "accelerate")


@pytest.mark.parametrize(("absent", "adapters", "ways"), [(BARE, "plain", {"ours"}), ((), "peft", {"ours", "trainer"})], ids=["bare", "whole"])
def test_the_targets_benchmark_needs_torch_and_transformers_alone(absent, adapters, ways):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TINY.format(absent=absent)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["adapters"] == adapters
    assert set(result["tokens_per_second"]) == ways
    assert (result["ours_over_trainer"] is None) == (ways == {"ours"})
