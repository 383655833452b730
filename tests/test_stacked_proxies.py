"""The benchmark of proxies side by side: as many processes as proxies, and none of them can hang it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "benchmarks" / "stacked_proxies.py"


@pytest.fixture
def benchmark(monkeypatch):
    """The file as a module that fresh processes find too."""
    monkeypatch.syspath_prepend(str(FILE.parent))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{FILE.parent}{os.pathsep}{Path(__file__).parent}")
    spec = importlib.util.spec_from_file_location("stacked_proxies", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stacked_proxies", module)
    spec.loader.exec_module(module)
    return module


def test_two_processes_against_two_side_by_side():
    command = [sys.executable, str(FILE), "--device", "cpu", "--stacked", "2", "--processes", "2", "--seconds", "0.1", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rates = result["stages_per_second"]
    assert result["stacked_over_processes"] == {"2": pytest.approx(rates["stacked"]["2"][0] / rates["processes"]["2"][0])}
    assert result["does_not_fit"] == {"stacked": {}, "processes": {}}


def out_of_memory(*_):
    raise RuntimeError("CUDA error: out of memory\nof which there is more to say")


def killed(*_):
    os._exit(9)


def faulty(*_):
    raise ValueError("out of order")


def first_of_two(action):
    """Replaces what the worker runs: one fails, the other waits at the barrier for it."""

    def work(device, preset, seconds, start_timeout_s, barrier, answers):
        import stacked_proxies

        if barrier.wait(60.0) == 0:
            stacked_proxies._rate = action
            return stacked_proxies._worker(device, preset, seconds, start_timeout_s, barrier, answers)
        barrier.wait(start_timeout_s)

    return work


def one_runs_out_of_memory(*arguments):
    first_of_two(out_of_memory)(*arguments)


def one_is_killed(*arguments):
    first_of_two(killed)(*arguments)


def one_is_faulty(*arguments):
    first_of_two(faulty)(*arguments)


@pytest.mark.parametrize(
    ("worker", "message"), [(one_runs_out_of_memory, "^CUDA error: out of memory$"), (one_is_killed, "^a process ended with exit code 9$")]
)
def test_what_does_not_fit_ends_soon(benchmark, monkeypatch, worker, message):
    monkeypatch.setattr(benchmark, "_worker", worker)
    with pytest.raises(benchmark.DoesNotFitError, match=message):  # The other would wait ten minutes.
        benchmark.process_rate(2, "cpu", "nano", 0.1, 600.0)


def test_a_fault_is_no_lack_of_memory(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "_worker", one_is_faulty)
    with pytest.raises(RuntimeError, match="ValueError: out of order"):
        benchmark.process_rate(2, "cpu", "nano", 0.1, 600.0)
    monkeypatch.setattr(benchmark, "_rate", out_of_memory)
    with pytest.raises(benchmark.DoesNotFitError):
        benchmark.stacked_rate(512, "cpu", "nano", 0.1)
