"""A sweep on a stand-in for proxy tuning, and a session of it that is killed half-way."""

import os
import subprocess
import sys
import time
from pathlib import Path

from fake_tuning import FakeTuning, SlowTuning, fake_cases, in_parallel, tiny_config
from own_ray import own_ray

from cluster.sweep import run_sweep
from cluster.sweep_trial import RUNGS, SweepPlan, Validation
from proxymix.account import Cost
from proxymix.artifacts import read_jsonl
from proxymix.config import validated

SIGMA = "controller.initial_sigma"
LEARNING_RATE = "controller.ppo.learning_rate"
TESTS = Path(__file__).parent


def judge_sigma(config, base_folder, parameters, cases):
    """The smaller sigma is, the better."""
    return Validation((-config.controller.initial_sigma,) * len(cases), Cost(10))


def judge_learning_rate(config, base_folder, parameters, cases):
    return Validation((-config.controller.ppo.learning_rate,) * len(cases))


def judge_what_was_learnt(config, base_folder, parameters, cases):
    """A number that only the very same parameters have."""
    return Validation((float(parameters["context_gain"].sum()),))


def plan(folder, validate, environment=FakeTuning, episodes=16, **sweep):
    space = {SIGMA: {"uniform": [0.2, 0.9]}}
    tree = tiny_config(episodes=episodes).model_dump(mode="json")
    tree["sweep"] = {"num_trials": 4, "scheduler": "none", "search": "random", "episodes_per_rung": 4, "space": space} | sweep
    return SweepPlan(validated(tree, "test"), "base", tuple(fake_cases()), tuple(fake_cases()), folder, in_parallel(environment), validate)


def timeless(trials):
    return [trial | {"rungs": [{key: value for key, value in rung.items() if key != "cpu_seconds"} for rung in trial["rungs"]]} for trial in trials]


def ray_of_trials():
    return own_ray(4, {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"})


def learnt_plan(folder, **sweep):
    """What `killed_session` and its test run alike."""
    return plan(folder, judge_what_was_learnt, SlowTuning, **sweep)


def session(folder, sweep):
    with ray_of_trials():
        run_sweep(learnt_plan(Path(folder), **sweep))


def killed_session(folder, sweep):
    """`learnt_plan` in a process of its own, killed once Tune has written down a rung and what its searcher knows; finished rungs by file."""
    program = f"import fake_sweep; fake_sweep.session({str(folder)!r}, {sweep!r})"
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program], env={**os.environ, "PYTHONPATH": paths}, start_new_session=True)
    deadline = time.monotonic() + 300
    try:
        while not _written_down(folder / "tune"):
            assert time.monotonic() < deadline, "the sweep never finished a rung"
            assert process.poll() is None, "the sweep ended too early"
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    return {path: list(read_jsonl(path)) for path in folder.glob(f"trainings/*/{RUNGS}")}


def _written_down(folder):
    """Tune writes the two one after the other. The name of the score stands in every state; a return, only where a rung was told."""
    told = [path.stat().st_mtime_ns for path in folder.glob("experiment_state-*.json") if "training_return" in path.read_text()]
    searcher = [path.stat().st_mtime_ns for pattern in ("search*state-*", "basic-variant-state-*") for path in folder.glob(pattern)]
    return bool(told and searcher) and min(searcher) >= max(told)
