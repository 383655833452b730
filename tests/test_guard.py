from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.artifacts import read_jsonl
from proxymix.continual import run_continual
from proxymix.controllers.baselines import Ramp, UniformReplay
from proxymix.guard import FEATURES, Guard, GuardedController, earlier_boundary, fit_guard, stage_rises
from proxymix.journal import RunJournal
from proxymix.probing import Readings
from proxymix.types import SourceReading, StageBoundary

NUM_STAGES = 4
FALLBACK = UniformReplay(0.3)


def gains(**wanted):
    return tuple(float(wanted.get(name, 0.0)) for name in FEATURES)


def boundaries(rng, turns_after=None, num_tasks=4, budget=3):
    """A made-up run: the current task's loss falls, the others' rise, the more the lower they are; after `turns_after` stages the other way round.

    Only `budget` sources are read at a boundary, as in a real run. Returns every boundary, the one after the last stage included.
    """
    sources = ["safety", "general", *(f"task{index}" for index in range(num_tasks))]
    true = dict(zip(sources, [0.3, 0.5, *rng.uniform(2, 4, num_tasks)], strict=True))
    readings, references, found = Readings(), {}, []
    for time in range(num_tasks * NUM_STAGES + 1):
        task = min(time // NUM_STAGES, num_tasks - 1)
        visible, current = sources[: 3 + task], sources[2 + task]
        due = readings.due(visible, {sources[2 + max(0, time - 1) // NUM_STAGES]}, budget)
        readings.add(visible, {name: true[name] for name in due})
        for name in visible:
            if name != current and name not in references:
                references[name] = true[name]
        found.append(_boundary(readings, references, visible, current, time, task))
        sign = 1 if turns_after is None or time < turns_after else -1
        for name in visible:
            drift = -0.6 if name == current else 0.3 - 0.1 * np.log(true[name])
            true[name] *= float(np.exp(sign * drift + 0.1 * rng.normal()))
    return found


def _boundary(readings, references, visible, current, time, task):
    histories, ages, intervals = readings.histories, readings.ages, readings.intervals
    rows = [
        SourceReading(
            name,
            "current" if name == current else "past" if name.startswith("task") else "anchor",
            tuple(histories[name]),
            None if name == current else references[name],
            ages[name],
            intervals[name],
        )
        for name in visible
    ]
    return StageBoundary(task, time - task * NUM_STAGES, NUM_STAGES, tuple(rows))


@pytest.fixture(scope="module")
def guard():
    runs = [boundaries(np.random.default_rng([1, seed]))[-1] for seed in range(20)]
    return fit_guard(runs, window=8, min_readings=12)


def test_a_hand_worked_comparison():
    """One stage: expected anchor > past > current; what rose most is the past task, then the current one: ρ = 1 − 6·(4 + 1 + 1)/(3·8) = −½."""
    sources = (
        SourceReading("safety", "anchor", (0.5, 0.5, 0.4), 0.5),
        SourceReading("code", "past", (3.0, 1.0, 2.0), 1.0),
        SourceReading("math", "current", (1.0, 1.5)),
    )
    boundary = StageBoundary(1, 1, 1, sources)
    expected = Guard(gains(is_anchor=1, is_current=-1), window=1, min_readings=3, bound=-0.4)
    [at] = expected.agreements(boundary)
    assert (at.task_index, at.stage_index, at.num_stages, at.num_readings) == (1, 0, 1, 3)
    assert at.rho == pytest.approx(-0.5)
    assert stage_rises(boundary)[-1].rises == pytest.approx(np.log([0.45 / 0.55, 2.05 / 1.05, 1.55 / 1.05]))
    assert "after stage 0 of task 1" in expected.alarm(boundary)
    assert "rank correlation -0.50 over 3 readings of 1 stages, below the bound -0.40" in expected.alarm(boundary)
    assert replace(expected, bound=-0.5).alarm(boundary) is None
    assert replace(expected, min_readings=4).alarm(boundary) is None


def test_what_was_carried_over_is_not_compared():
    still, read = SourceReading("general", "anchor", (0.5, 0.5), 0.5, age=1), SourceReading("math", "current", (2.0, 1.0))
    [stage] = stage_rises(StageBoundary(0, 1, 4, (still, read)))
    assert stage.rises == pytest.approx(np.log([1.05 / 2.05]))


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(3, 7))
def test_every_earlier_boundary_is_in_a_later_one(seed, num_tasks, budget):
    seen = boundaries(np.random.default_rng(seed), num_tasks=num_tasks, budget=budget)
    for time, boundary in enumerate(seen[:-1]):  # After the end the last task is still current, so the last boundary is like no other.
        assert earlier_boundary(seen[-1], time) == earlier_boundary(boundary, time) == boundary


def test_every_earlier_boundary_of_a_real_run_is_in_a_later_one(smoke_builder, smoke_case):
    run = smoke_builder.build(smoke_case)
    seen = [record.boundary for record in run_continual(run, Ramp(2.0))]
    assert any(source.age for boundary in seen for source in boundary.sources)
    assert [earlier_boundary(run.observe(), time) for time in range(len(seen))] == seen


def test_a_run_like_the_proxys_raises_no_alarm_and_a_turned_one_does(guard):
    alike = [guard.alarm(boundaries(np.random.default_rng([2, seed]))[-1]) for seed in range(20)]
    turned = [guard.alarm(boundaries(np.random.default_rng([2, seed]), turns_after=0)[-1]) for seed in range(20)]
    assert sum(alarm is not None for alarm in alike) <= 1
    assert None not in turned


def test_the_alarm_is_latched(guard):
    seen = boundaries(np.random.default_rng(7), turns_after=6, num_tasks=4)
    alarms = [guard.alarm(boundary) for boundary in seen]
    first = next(index for index, alarm in enumerate(alarms) if alarm)
    assert 6 < first < 15
    assert set(alarms[:first]) == {None}
    assert len(set(alarms[first:])) == 1
    decisions = [GuardedController(Ramp(2.0), guard, FALLBACK).decide(boundary) for boundary in seen]
    assert {d.controller for d in decisions[:first]} == {"ramp_2"}
    assert {(d.controller, d.fallback) for d in decisions[first:]} == {("random_30", alarms[first])}


def test_the_bound_lets_the_declared_share_of_runs_pass():
    runs = [boundaries(np.random.default_rng([3, seed]))[-1] for seed in range(20)]
    strict, lax = (fit_guard(runs, window=8, min_readings=12, false_alarms=share) for share in (0.25, 0.0))
    minima = np.array(strict.held_out_minima)
    assert len(minima) == 20
    assert (minima < lax.bound).sum() == 0
    assert 0 < (minima < strict.bound).sum() <= 5
    assert fit_guard(runs, window=8, min_readings=12, bound=0.25).bound == 0.25


def test_nothing_to_go_by_is_refused():
    run = boundaries(np.random.default_rng(0))[-1]
    with pytest.raises(ValueError, match="at least 2, got 1"):
        fit_guard([run], window=8, min_readings=12)
    with pytest.raises(ValueError, match="min_readings must be reached within 2 stages of some run, got 50"):
        fit_guard([run, run], window=2, min_readings=50)


def test_a_guard_survives_json_and_refuses_other_features(guard):
    assert Guard.from_json(guard.to_json()) == guard
    with pytest.raises(ValueError, match="calibrate the guard anew"):
        Guard.from_json(guard.to_json() | {"features": ["bias"]})


def test_it_closes_what_it_watches(guard):
    class Closable(Ramp):
        closed = False

        def close(self):
            self.closed = True

    watched = Closable(2.0)
    GuardedController(watched, guard, FALLBACK).close()
    GuardedController(Ramp(2.0), guard, FALLBACK).close()
    assert watched.closed


class KilledError(Exception):
    pass


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_resumed_run_decides_as_an_undisturbed_one(smoke_builder, smoke_case, base_folder, tmp_path, killed_after):
    """The guard expects the current task to rise, so it falls back as soon as it has something to say: here after the second stage."""
    suspicious = Guard(gains(is_current=1), window=2, min_readings=5, bound=0.5)

    def start(folder):
        run = smoke_builder.build(smoke_case)
        journal = RunJournal(tmp_path / folder, smoke_builder.learner, Path(base_folder))
        journal.resume(run)
        return run, journal

    class Killed:
        def __init__(self, journal):
            self.journal, self.task_finished = journal, journal.task_finished

        def stage_finished(self, run, record):
            self.journal.stage_finished(run, record)
            if len(self.journal.rows) == killed_after:
                raise KilledError

    run, whole = start("whole")
    run_continual(run, GuardedController(Ramp(2.0), suspicious, FALLBACK), whole)
    run, killed = start("killed")
    with pytest.raises(KilledError):
        run_continual(run, GuardedController(Ramp(2.0), suspicious, FALLBACK), Killed(killed))
    killed.close()
    run, resumed = start("killed")
    run_continual(run, GuardedController(Ramp(2.0), suspicious, FALLBACK), resumed)
    rows = [[{**row, "seconds": None} for row in read_jsonl(journal.folder / "decisions.jsonl")] for journal in (whole, resumed)]
    assert rows[0] == rows[1]
    assert [row["controller"]["name"] for row in rows[0]] == ["ramp_2", "ramp_2", "random_30", "random_30"]
    assert rows[0][1]["fallback"] is None
    assert rows[0][2]["fallback"].startswith("guard: after stage 1 of task 0")
    assert rows[0][2]["fallback"] == rows[0][3]["fallback"]


def test_gains_are_fitted_to_what_is_there():
    """Made-up losses: the current task's fall is the largest effect, and the fit says so."""
    runs = [boundaries(np.random.default_rng([4, seed]))[-1] for seed in range(20)]
    fitted = fit_guard(runs, window=8, min_readings=12)
    stages = [stage for run in runs for stage in stage_rises(run)]
    features, rises = np.concatenate([s.features for s in stages]), np.concatenate([s.rises for s in stages])
    current = features[:, FEATURES.index("is_current")] == 1
    expected = features @ np.array(asdict(fitted)["gains"])
    assert expected[current].mean() == pytest.approx(rises[current].mean(), abs=0.05)
    assert expected[~current].mean() == pytest.approx(rises[~current].mean(), abs=0.05)
