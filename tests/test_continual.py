import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxymix.config import TuningConfig
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import Ramp, UniformReplay
from proxymix.cost import ModelShape
from proxymix.data.encoding import EncodedSource, EncodedSplit
from proxymix.episode import validation_safety
from proxymix.errors import NonFiniteLossError, UserError
from proxymix.types import Decision

TUNING = TuningConfig(stages_per_task=2, steps_per_stage=3, batch_size=8, probes_per_boundary=4)
NAMES = ["safety", "code", "math", "chat"]
"""One anchor, three tasks. Every token of source i is i."""


def split(index, num_rows):
    tokens = torch.full((num_rows, 2), index)
    return EncodedSplit(tokens, tokens, torch.full((num_rows,), 2))


def source(name, buffer_size=4):
    index = NAMES.index(name)
    return EncodedSource(name, "exact_match", split(index, 20), split(index, buffer_size), split(index, 2), split(index, 3), None)


class FakeLearner:
    """Losses fall with every example seen of a source and rise with every step; keeps what it was asked."""

    def __init__(self):
        self.shape = ModelShape(body=1, head=0, attention=0)  # 2 operations a token forward, 6 in training
        self.seen, self.num_steps, self.tasks, self.probed = dict.fromkeys(range(len(NAMES)), 0), 0, [], []

    def begin_task(self, num_optimizer_steps):
        self.tasks.append(num_optimizer_steps)

    def train_steps(self, batches):
        (batch,) = batches
        assert batch.input_ids.shape == (8, 2)
        for index in batch.input_ids[:, 0].tolist():
            self.seen[index] += 1
        self.num_steps += 1
        return [float(self.num_steps)]

    def losses_of_all(self, probes):
        self.probed.append(tuple(probes))
        return [{name: 2.0 - 0.01 * self.seen[NAMES.index(name)] + 0.02 * self.num_steps for name in probes}]

    def accuracies_of_all(self, probes):
        return [{name: torch.arange(len(probe)) < 2 for name, probe in probes.items()}]


def new_run(learner=None, **settings):
    anchor, *tasks = (source(name) for name in NAMES)
    return ContinualRun(tasks, [anchor], learner or FakeLearner(), TUNING, seed=1, **settings)


def timeless(records):
    return [replace(record, seconds={}) for record in records]


class Notebook:
    def __init__(self):
        self.events = []

    def stage_finished(self, run, record):
        self.events.append(record.request_id)

    def task_finished(self, run, task_index):
        self.events.append(task_index)


def test_a_later_task_never_appears():
    learner = FakeLearner()
    records = run_continual(new_run(learner), UniformReplay(0.5))
    seen = [(record.boundary.task_index, record.boundary.stage_index, record.boundary.names) for record in records]
    assert seen == [(task, stage, tuple(NAMES[: task + 2])) for task in range(3) for stage in range(2)]
    visible = [2, 2, 3, 3, 4, 4, 4]  # at every boundary, the final one included
    assert learner.probed == [tuple(NAMES[:count]) for count in visible]


def test_roles_and_histories():
    run = new_run()
    run_continual(run, UniformReplay(0.5))
    boundary = run.observe()  # the last task is still current
    assert [(source.name, source.role, len(source.losses)) for source in boundary.sources] == [
        ("safety", "anchor", 7),
        ("code", "past", 7),
        ("math", "past", 5),
        ("chat", "current", 3),
    ]
    assert (boundary.task_index, boundary.stage_index, boundary.current.name) == (2, 1, "chat")


def test_each_decision_sees_one_more_reading_and_an_unchanged_past():
    records = run_continual(new_run(), Ramp())
    for before, after in pairwise(records):
        later = {source.name: source for source in after.boundary.sources}
        for reading in before.boundary.sources:
            assert later[reading.name].losses[:-1] == reading.losses


def test_the_reference_is_the_loss_at_the_end_of_a_sources_own_task():
    run = new_run()
    run_continual(run, UniformReplay(0.3))
    references = {source.name: source.reference_loss for source in run.observe().sources}
    stages = TUNING.stages_per_task
    assert references == {
        "safety": run.readings.histories["safety"][0],
        "code": run.readings.histories["code"][stages],
        "math": run.readings.histories["math"][stages],
        "chat": None,
    }


def test_a_reference_is_known_from_the_boundary_after_the_task():
    records = run_continual(new_run(), UniformReplay(0.3))
    of_code = [source.reference_loss for record in records for source in record.boundary.sources if source.name == "code"]
    assert of_code[:2] == [None, None]
    assert len(set(of_code[2:])) == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"safety": 0.5, "code": 0.5, "math": 0.0}, "exactly the visible"),  # a later task, even at weight 0
        ({"code": 1.0}, "exactly the visible"),
        ({"safety": 0.6, "code": 0.6}, "sum to 1"),
        ({"safety": -0.2, "code": 1.2}, "non-negative"),
        ({"safety": float("nan"), "code": 1.0}, "non-negative and sum to 1"),
    ],
)
def test_a_mixture_over_anything_but_the_visible_sources_is_rejected(weights, message):
    learner = FakeLearner()
    run = new_run(learner)
    with pytest.raises(ValueError, match=message):
        run.advance(Decision(weights, "test"))
    assert learner.num_steps == 0
    assert (run.task_index, run.stage_index) == (0, 0)


def test_names_must_be_unique():
    with pytest.raises(ValueError, match="unique names"):
        ContinualRun([source("code"), source("code")], [], FakeLearner(), TUNING, seed=0)


def test_a_finished_run_goes_no_further():
    run = new_run()
    run_continual(run, UniformReplay(0.0))
    with pytest.raises(ValueError, match="every task is finished"):
        run.advance(UniformReplay(0.0).decide(run.observe()))
    assert run_continual(run, UniformReplay(0.0)) == []


def test_what_is_decided_is_what_is_drawn():
    learner = FakeLearner()
    records = run_continual(new_run(learner), UniformReplay(0.5))
    assert records[0].counts == {"safety": 12, "code": 12}
    assert records[2].counts == {"safety": 6, "code": 6, "math": 12}
    assert records[4].counts == {"safety": 4, "code": 4, "math": 4, "chat": 12}
    assert learner.seen == {index: sum(record.counts.get(name, 0) for record in records) for index, name in enumerate(NAMES)}
    assert [record.replay_share for record in records] == pytest.approx([0.5] * 6)


def test_every_method_gets_the_same_steps_and_samples():
    for controller in (UniformReplay(0.0), UniformReplay(0.7), Ramp()):
        records = run_continual(new_run(), controller)
        assert [(record.num_optimizer_steps, sum(record.counts.values()), record.num_tokens) for record in records] == [(3, 24, 48)] * 6
        assert {record.decision.controller for record in records} == {controller.name}


def test_records_tell_the_stage():
    records = run_continual(new_run(name="run7"), UniformReplay(0.0))
    assert [record.request_id for record in records][:3] == ["run7/task0/stage0", "run7/task0/stage1", "run7/task1/stage0"]
    assert [record.training_loss for record in records] == [2.0, 5.0, 8.0, 11.0, 14.0, 17.0]  # the fake's loss is the step's number
    assert [record.num_validation_tokens for record in records] == [8, 12, 12, 16, 16, 16]  # 4 per source visible afterwards
    assert set(records[0].seconds) == {"train", "validate", "decide", "cpu"}


def test_every_operation_of_the_learner_is_in_one_record():
    run = new_run()
    records = run_continual(run, Ramp(2.0))
    assert [record.training_flops for record in records] == [6 * 3 * 8 * 2] * 6
    assert [record.validation_flops for record in records] == [2 * 4 * n for n in (2 + 2, 3, 3, 4, 4, 4)]  # the base's readings are in the first
    assert run.flops == sum(record.training_flops + record.validation_flops for record in records)
    run.validation_accuracies()
    assert run.flops == 6 * 6 * 48 + 8 * 22 + 2 * 4 * 3 * 2  # 4 sources, 3 rows, 2 tokens


def test_each_task_begins_anew_with_its_own_length():
    learner = FakeLearner()
    records = run_continual(new_run(learner, steps_per_stage=[1, 2, 5]), UniformReplay(0.0))
    assert learner.tasks == [2, 4, 10]
    assert [record.num_optimizer_steps for record in records] == [1, 1, 2, 2, 5, 5]


def test_without_buffers_the_current_task_gets_all():
    tasks = [source(name, buffer_size=0) for name in NAMES[1:]]
    records = run_continual(ContinualRun(tasks, [], FakeLearner(), TUNING, seed=1), UniformReplay(0.5))
    assert [record.counts[record.boundary.current.name] for record in records] == [24] * 6


def test_the_journal_hears_of_every_stage_then_of_the_task():
    notebook = Notebook()
    run_continual(new_run(), UniformReplay(0.0), notebook)
    assert notebook.events == [event for task in range(3) for event in (f"run/task{task}/stage0", f"run/task{task}/stage1", task)]


@given(st.integers(0, 6), st.sampled_from([0.0, 0.3, 0.7]))
def test_resuming_equals_never_stopping(num_stages, share):
    controller, learner = UniformReplay(share), FakeLearner()
    expected = timeless(run_continual(new_run(), controller))
    stopped = new_run(learner)
    for _ in range(num_stages):
        stopped.advance(controller.decide(stopped.observe()))
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = new_run(learner)
    resumed.load_state_dict(state)
    assert timeless(run_continual(resumed, controller)) == expected[num_stages:]


def test_a_state_is_a_snapshot():
    run = new_run()
    run.advance(UniformReplay(0.5).decide(run.observe()))
    state = run.state_dict()
    kept = json.loads(json.dumps(state))
    other = new_run(run.learner)
    other.load_state_dict(state)
    for either in (run, other):
        either.advance(UniformReplay(0.5).decide(either.observe()))
    assert state == kept


def test_resuming_a_real_learner_is_bit_identical(smoke_builder, smoke_case):
    controller, learner = Ramp(2.0), smoke_builder.learner
    run = smoke_builder.build(smoke_case)
    records = []
    while not run.done:
        records.append(run.advance(controller.decide(run.observe())))
        if len(records) == 3:  # in the middle of the second task
            state = json.loads(json.dumps(run.state_dict()))
            tensors = {name: value.clone() for name, value in learner.state_dict().items()}
    weights = learner.flat.detach().clone()
    resumed = smoke_builder.build(smoke_case)
    resumed.load_state_dict(state)
    learner.load_state_dict(tensors)
    assert timeless(run_continual(resumed, controller)) == timeless(records[3:])
    assert torch.equal(learner.flat, weights)


class Broken(FakeLearner):
    """Whose losses are no numbers any more after so many steps."""

    def __init__(self, num_steps):
        super().__init__()
        self.last = num_steps

    def losses_of_all(self, probes):
        return [dict.fromkeys(probes, math.inf)] if self.num_steps >= self.last else super().losses_of_all(probes)


@pytest.mark.parametrize(
    ("num_steps", "fault", "told"),
    [
        (0, UserError, r"^model: validation loss on rows of safety became inf before any step; mend its weights"),
        (
            1,
            NonFiniteLossError,
            r"^validation loss .* safety became inf at optimizer step 2 of task 0 \(code\), stage 0; the .* is kept; lower",
        ),
        (
            10,
            NonFiniteLossError,
            r"^validation loss .* safety became inf at optimizer step 5 of task 1 \(math\), stage 1; the .* is kept",
        ),
    ],
)
def test_a_reading_that_is_not_finite_is_told(num_steps, fault, told):
    notebook = Notebook()
    with pytest.raises(fault, match=told):
        run_continual(new_run(Broken(num_steps)), UniformReplay(0.5), notebook)
    assert len([event for event in notebook.events if isinstance(event, str)]) == {0: 0, 1: 0, 10: 3}[num_steps]


def test_validation_scores():
    run = new_run()
    assert run.validation_accuracies() == pytest.approx(dict.fromkeys(NAMES, 2 / 3))
    assert run.safety_anchor is None
    anchor = run.anchors[0] = replace(run.anchors[0], harmful=torch.tensor([True, False, False]))
    assert run.safety_anchor is anchor
    right = torch.tensor([True, True, False])
    assert validation_safety(anchor, right, 1.0) == pytest.approx(1.0 - 0.5)
    assert validation_safety(anchor, right, 0.5) == pytest.approx(1.0 - 0.25)
