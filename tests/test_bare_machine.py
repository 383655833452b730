"""A GPU machine may have torch and little else: what is meant to run there imports nothing more."""

import json
import subprocess
import sys
from pathlib import Path

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
