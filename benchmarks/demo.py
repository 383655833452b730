"""The whole loop, as `make demo` runs it, from empty run and cache folders: how long, in which phases, and how much memory.

    python benchmarks/demo.py --config configs/demo.yaml [key.path=value …]

Prints one JSON line: wall-clock seconds, seconds of each phase as `events.jsonl` has them (some go on beside others; `start_ray` is Ray's alone,
`before_phases` all from the command to the first phase, imports, data and Ray), and the peak of the proportional set size of the job's process tree,
looked at once a second. Ray's processes are in it; what another starts is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from proxymix.artifacts import read_jsonl
from proxymix.config import load_config
from proxymix.report.diagnostics import phase_seconds

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.overrides, f"runs_root={folder}/runs", f"cache_root={folder}/cache"]
        run_dir = load_config(arguments.config, overrides).run_dir
        began, clock = time.time(), time.perf_counter()
        process = psutil.Popen(
            [sys.executable, "-m", "jobs.pipeline", "--config", str(Path(arguments.config).resolve()), *overrides],
            cwd=ROOT,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
            stdout=subprocess.DEVNULL,
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_pss(process))
            time.sleep(1)
        seconds = time.perf_counter() - clock
        if process.returncode:
            sys.exit(process.returncode)
        events = list(read_jsonl(run_dir / "events.jsonl"))
    phases = {"before_phases": round(events[0]["time"] - began, 1), **{name: round(value, 1) for name, value in phase_seconds(events).items()}}
    measured = {"cores": os.cpu_count(), "seconds": round(seconds, 1), "peak_gib": round(peak / 2**30, 2), "phases": phases}
    print(json.dumps({"benchmark": "demo", **measured}))


def tree_pss(process: psutil.Process) -> int:
    """Bytes of memory of `process` and all beneath it; pages that several share are counted once."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # It has ended meanwhile.
            total += each.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
