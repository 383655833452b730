import json
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxymix.config import TuningConfig
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.cost import ModelShape
from proxymix.data.encoding import EncodedSource, EncodedSplit
from proxymix.probing import Readings

UNIFORM = UniformReplay(0.5)


class FakeLearner:
    """The loss of any source is the number of the boundary it is read at; keeps what was read."""

    shape = ModelShape(body=1, head=1, attention=1)

    def __init__(self):
        self.probed, self.num_steps = [], 0

    def begin_task(self, num_optimizer_steps):
        pass

    def train_steps(self, batches):
        self.num_steps += 1
        return [0.0]

    def losses_of_all(self, probes):
        self.probed.append(list(probes))
        return [dict.fromkeys(probes, float(self.num_steps))]  # one optimizer step a stage


def source(name, num_probe_tokens=2):
    rows = torch.zeros((2, 2), dtype=torch.int64)
    split = EncodedSplit(rows, rows, torch.tensor([1, num_probe_tokens - 1]))
    return EncodedSource(name, "exact_match", split, split, split, split, None)


def new_run(anchors, tasks, *, budget, stages=2, learner=None):
    tuning = TuningConfig(stages_per_task=stages, steps_per_stage=1, batch_size=2, probes_per_boundary=budget)
    return ContinualRun([source(name) for name in tasks], [source(name) for name in anchors], learner or FakeLearner(), tuning, seed=0)


def test_who_is_read_by_hand():
    """Of two or three places a task in its middle takes one, a change of tasks two; the oldest get the rest, the first in order on a tie."""
    run = new_run(["safety", "general"], ["code", "math", "chat"], budget=3)
    records = run_continual(run, UNIFORM)
    assert run.learner.probed == [
        ["safety", "general", "code"],
        ["safety", "general", "code"],
        ["safety", "code", "math"],  # code is over, math comes: one place left
        ["safety", "general", "math"],
        ["code", "math", "chat"],
        ["safety", "general", "chat"],
        ["code", "math", "chat"],
    ]
    assert {s.name: (s.losses, s.age, s.interval, s.reference_loss) for s in run.observe().sources} == {
        "safety": ((0, 1, 2, 3, 3, 5, 5), 1, 2, 0),
        "general": ((0, 1, 1, 3, 3, 5, 5), 1, 2, 0),
        "code": ((0, 1, 2, 2, 4, 4, 6), 0, 2, 2),
        "math": ((2, 3, 4, 4, 6), 0, 2, 4),
        "chat": ((4, 5, 6), 0, 1, None),
    }
    assert [record.num_validation_tokens for record in records] == [6] * 6  # 2 of each source that was read
    third = {s.name: (s.age, s.interval) for s in records[2].boundary.sources}
    assert third == {"safety": (0, 1), "general": (1, 1), "code": (0, 1), "math": (0, 1)}


@given(st.integers(0, 5), st.integers(1, 8), st.integers(1, 4), st.integers(3, 6))
def test_every_source_is_read_again_within_its_bound_and_no_boundary_costs_more_than_the_budget(num_anchors, num_tasks, stages, budget):
    anchors, tasks = [f"anchor{i}" for i in range(num_anchors)], [f"task{i}" for i in range(num_tasks)]
    run = new_run(anchors, tasks, budget=budget, stages=stages)
    records = run_continual(run, UNIFORM)
    boundaries = [*(record.boundary for record in records), run.observe()]
    assert run.learner.probed[0] == [*anchors, "task0"]
    for index, (boundary, probed) in enumerate(zip(boundaries, run.learner.probed, strict=True)):
        assert boundary.current.age == 0
        assert [s.name for s in boundary.sources if s.age == 0] == probed
        assert max(s.age for s in boundary.sources) <= ceil((num_anchors + num_tasks) / (budget - 2))
        if index:
            assert min(budget, len(boundary.sources)) <= len(probed) <= budget
            assert boundaries[index - 1].current.name in probed  # what was trained, a task's last reading with it
    assert run.reference_losses == dict.fromkeys(anchors, 0) | {name: stages * (k + 1) for k, name in enumerate(tasks)}


@given(st.integers(1, 5), st.integers(1, 3), st.integers(3, 5))
def test_who_is_read_does_not_depend_on_tasks_to_come(num_tasks, stages, budget):
    long, short = (new_run(["safety", "general"], [f"task{i}" for i in range(count)], budget=budget, stages=stages) for count in (6, num_tasks))
    for run in (long, short):
        run_continual(run, UNIFORM)
    shared = num_tasks * stages  # the boundary after them already shows the next task, or the end
    assert long.learner.probed[:shared] == short.learner.probed[:shared]


@given(st.integers(0, 8))
def test_resuming_keeps_ages_and_the_rotation(num_stages):
    names = (["safety", "general"], ["code", "math", "chat", "law"])
    whole, stopped = new_run(*names, budget=3), new_run(*names, budget=3)
    expected = run_continual(whole, UNIFORM)
    for _ in range(num_stages):
        stopped.advance(UNIFORM.decide(stopped.observe()))
    resumed = new_run(*names, budget=3, learner=stopped.learner)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    records = run_continual(resumed, UNIFORM)
    assert [record.boundary for record in records] == [record.boundary for record in expected[num_stages:]]
    assert stopped.learner.probed == whole.learner.probed
    assert resumed.observe() == whole.observe()


def test_with_room_for_all_every_reading_is_fresh():
    run = new_run(["safety"], ["code", "math", "chat"], budget=4)
    boundaries = [record.boundary for record in run_continual(run, UNIFORM)]
    assert {(s.age, s.interval) for boundary in boundaries for s in boundary.sources} == {(0, 1)}


def test_readings_are_a_snapshot():
    readings = Readings()
    readings.add(["a"], {"a": 1.0})
    state = readings.state_dict()
    readings.add(["a"], {})
    assert state == {"histories": {"a": [1.0]}, "ages": {"a": 0}, "intervals": {"a": 1}}


@pytest.mark.parametrize(
    ("settings", "size", "budget"),
    [
        ({}, 10, 3),  # 128 rows a stage: a quarter is 32, and three probes there are always
        ({"validation_size": 16}, 16, 3),
        ({"steps_per_stage": 2, "batch_size": 4}, 2, 3),
        ({"steps_per_stage": 12}, 16, 3),
        ({"steps_per_stage": 50, "batch_size": 24}, 16, 18),
        ({"steps_per_stage": 50, "batch_size": 24, "validation_size": 4}, 4, 75),
        ({"steps_per_stage": 50, "probes_per_boundary": 3}, 16, 3),
        ({"probes_per_boundary": 64}, 10, 64),
    ],
)
def test_probes_suit_the_stage(settings, size, budget):
    tuning = TuningConfig(**settings)
    assert (tuning.probe_size, tuning.probe_budget) == (size, budget)
