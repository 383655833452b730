"""Trials that are one training, and what a restored scheduler knows; without a cluster."""

from contextlib import suppress
from threading import Thread, current_thread
from types import SimpleNamespace

import pytest
from fake_sweep import SIGMA, judge_sigma, plan
from ray.tune.schedulers import TrialScheduler

from cluster import sweep_trial
from cluster.policy_training import TrainingResult
from cluster.sweep import RestoredASHA, _scheduler
from cluster.sweep_trial import METRIC, RUNGS, _train
from proxymix.artifacts import read_jsonl, write_jsonl
from proxymix.errors import UserError

ROW = {"episodes": 4, "stages": 6, "num_tokens": 1, "validation_tokens": 1, "num_validation_tokens": 1, "sample_seconds": 0.0, "learn_seconds": 0.0}
ROW |= {"reward_mean": 0.0, "flops": 1, "cpu_seconds": 0.0, "num_dropped": 0}
OVERRIDES = {SIGMA: 0.5}


class Stopped(BaseException):
    """What the end of its process is to a trial that ASHA stops."""


def fake_training(done):
    """`training_steps` of four iterations, the finished ones in a file; `done` hears of each that is run."""

    def steps(config, base_folder, cases, out, environment, start):
        rows = list(read_jsonl(out / "rows.jsonl"))
        yield TrainingResult({}, rows, ())
        for iteration in range(len(rows), 4):
            done.append(iteration)
            rows = [*rows, ROW | {"iteration": iteration}]
            write_jsonl(out / "rows.jsonl", rows)
            yield TrainingResult({}, rows, ())

    return steps


def test_a_trial_waits_for_another_that_is_the_same_training(tmp_path, monkeypatch):
    """The first is stopped after its first rung; the second goes on from there, and no rung is lost or run twice."""
    done, heard = [], {"first": [], "second": []}
    sweep = plan(tmp_path, judge_sigma, space={SIGMA: {"choice": [0.5]}}, num_trials=2)
    second = Thread(target=_train, args=(sweep, OVERRIDES, None), daemon=True)

    def report(metrics, checkpoint):
        name = "second" if current_thread() is second else "first"
        heard[name].append(metrics["rung"])
        if name == "first":
            second.start()
            second.join(0.5)
            assert second.is_alive()
            raise Stopped

    monkeypatch.setattr(sweep_trial, "training_steps", fake_training(done))
    monkeypatch.setattr(sweep_trial.tune, "report", report)
    with suppress(Stopped):
        _train(sweep, OVERRIDES, None)
    second.join(60)
    assert heard == {"first": [1], "second": [1, 2, 3, 4]}
    assert done == [0, 1, 2, 3]
    (folder,) = (tmp_path / "trainings").iterdir()
    assert [rung["rung"] for rung in read_jsonl(folder / RUNGS)] == [1, 2, 3, 4]


def test_a_training_that_is_further_than_its_rungs_is_told(tmp_path, monkeypatch):
    sweep = plan(tmp_path, judge_sigma)
    monkeypatch.setattr(sweep_trial, "training_steps", fake_training([]))
    monkeypatch.setattr(sweep_trial.tune, "report", lambda metrics, checkpoint: None)
    _train(sweep, OVERRIDES, None)
    (folder,) = (tmp_path / "trainings").iterdir()
    write_jsonl(folder / RUNGS, list(read_jsonl(folder / RUNGS))[:1])
    with pytest.raises(UserError, match="got 1 of 4 though it is further; remove that folder"):
        _train(sweep, OVERRIDES, None)


def trial(folder, name, rung=0):
    """What a scheduler looks at, `rung` of it known to Tune."""
    last = {"rung": rung, "training": name} if rung else {}
    return SimpleNamespace(trial_id=name, last_result=last, storage=SimpleNamespace(storage_fs_path=str(folder)))


def asha(folder):
    scheduler = _scheduler(plan(folder, judge_sigma, scheduler="asha", reduction_factor=2))
    assert isinstance(scheduler, RestoredASHA)
    assert scheduler.set_search_properties(METRIC, "max")
    return scheduler


def told(scheduler, trials, name, rung, score):
    return scheduler.on_trial_result(None, trials[name], {"training_iteration": rung, METRIC: score})


def test_a_restored_asha_stops_whom_the_undisturbed_one_would_stop(tmp_path):
    scores = {"good": [0.5, 0.9], "fair": [0.4], "bad": [0.1]}
    undisturbed, trials = asha(tmp_path), {name: trial(tmp_path, name) for name in (*scores, "new")}
    for one in trials.values():
        undisturbed.on_trial_add(None, one)
    for name, heard in scores.items():
        for rung, score in enumerate(heard, 1):
            told(undisturbed, trials, name, rung, score)
        # The rung after it was finished as well, and then all was killed: Tune had not heard of it, nobody has been judged on it.
        written = [{"rung": rung, METRIC: score} for rung, score in enumerate([*heard, 0.0], 1)]
        write_jsonl(tmp_path / "trainings" / name / RUNGS, written)
    restored = asha(tmp_path)
    again = {name: trial(tmp_path, name, len(scores.get(name, ()))) for name in ("bad", "good", "new", "fair")}
    for one in again.values():
        restored.on_trial_add(None, one)
    assert [bracket._rungs for bracket in restored._brackets] == [bracket._rungs for bracket in undisturbed._brackets]
    decisions = [
        (told(scheduler, of, "new", 1, 0.3), told(scheduler, of, "fair", 2, 0.2)) for scheduler, of in ((undisturbed, trials), (restored, again))
    ]
    assert decisions == [(TrialScheduler.STOP, TrialScheduler.STOP)] * 2
