"""Rules that look at data or at the model, on a real run of a tiny one; and the factory that builds every rival."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from proxymix.cases import builtin_source
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.controllers.gradient_rules import conflict, gradient_conflicts
from proxymix.controllers.instruction_rules import InstructionDistances, prompt_embeddings, wasserstein_distance
from proxymix.controllers.rivals import Found, rival
from proxymix.controllers.visible import example_counts, inverse_lengths
from proxymix.data.encoding import IGNORED, EncodedSplit
from proxymix.errors import UserError
from proxymix.learners.learner import Learner
from proxymix.learners.models import load_model

FOUND = Found(
    numbers={"grad_sim_chosen": 40, "random_realised": 27.4, "ramp_chosen": 7, "proportional_chosen": 35.5},
    schedules={"schedule_tuned": [[0.1, 0.2]]},
    mixtures={"doremi": {"safety": 0.3, "general": 0.2, "table_small": 0.4, "roleplay": 0.1, "cipher": 0.2}},
)
METHODS = ["grad_sim_30", "inscl_40", "random_examples_20", "random_tokens_20", "schedule_tuned", "doremi", "grad_sim_chosen"]


@pytest.fixture
def run(smoke_builder, smoke_case):
    return smoke_builder.build(smoke_case)


def second_task(run):
    """`run` at the first boundary of its second task."""
    for _ in range(run.tuning.stages_per_task):
        run.advance(baseline("random_30").decide(run.observe()))
    return run.observe()


@pytest.mark.parametrize(
    ("gradient", "current", "expected"), [([1.0, 1.0], [-2.0, 0.0], 0.5**0.5), ([1.0, 0.0], [3.0, 1.0], 0.0), ([0.0, 0.0], [1.0, 0.0], 0.0)]
)
def test_conflict_by_hand(gradient, current, expected):
    assert conflict(torch.tensor(gradient), torch.tensor(current)) == pytest.approx(expected)


def plain_gradient(model, split):
    loss = F.cross_entropy(model(split.input_ids).logits.flatten(0, 1), split.labels.flatten(), ignore_index=IGNORED)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def test_gradient_conflicts_are_those_of_plain_autograd(run, base_folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    boundary = run.observe()
    expected = {source.name: plain_gradient(model, source.probe) for source in run.visible}
    current = expected.pop(boundary.current.name)
    cosines = {name: float(torch.dot(g, current) / (g.norm() * current.norm())) for name, g in expected.items()}
    assert gradient_conflicts(run, boundary) == pytest.approx({name: max(0.0, -cosine) for name, cosine in cosines.items()}, abs=1e-4)
    for source in run.visible:
        found = run.learner.gradient(source.probe)
        assert float(found.norm()) == pytest.approx(float(plain_gradient(model, source.probe).norm()), rel=1e-4)


def test_a_gradient_in_parts_is_the_whole_one_and_changes_nothing(run):
    split = run.visible[0].validation
    whole, before = run.learner.gradient(split), run.learner.flat.detach().clone()
    run.learner.tuning = replace_batch_size(run.learner.tuning, 3)
    try:
        assert len(split) > 3
        assert torch.allclose(run.learner.gradient(split), whole, atol=1e-6)
    finally:
        run.learner.tuning = run.tuning
    assert torch.equal(run.learner.flat, before)


def test_any_rank_computes_the_whole_gradient_alone(run, base_folder):
    def reduce(tensor):
        raise AssertionError("the other ranks are waiting for a decision")

    ranked = Learner(load_model(base_folder, "lean"), run.tuning, rank=1, world_size=2, reduce=reduce)
    assert torch.equal(ranked.gradient(run.tasks[0].probe), run.learner.gradient(run.tasks[0].probe))


def replace_batch_size(tuning, size):
    return tuning.model_copy(update={"batch_size": size})


def test_gradients_are_counted_once_each(run):
    boundary = second_task(run)
    before, shape = run.validation_flops, run.learner.shape
    gradient_conflicts(run, boundary)
    expected = sum(shape.training_flops(source.probe.batch().shape) for source in run.visible)
    assert len(run.visible) == 4
    assert run.validation_flops - before == expected


def test_wasserstein_distance_is_the_best_assignment():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 3))
    best = min(np.mean([np.linalg.norm(first[i] - second[j]) for i, j in enumerate(order)]) for order in permutations(range(5)))
    assert wasserstein_distance(first, second) == pytest.approx(best)
    assert wasserstein_distance(first, first[::-1]) == 0.0


@given(st.integers(0, 2**16), st.integers(1, 8))
def test_wasserstein_distance_is_a_distance(seed, count):
    a, b, c = np.random.default_rng(seed).normal(size=(3, count, 2))
    assert wasserstein_distance(a, b) == pytest.approx(wasserstein_distance(b, a))
    assert wasserstein_distance(a, c) <= wasserstein_distance(a, b) + wasserstein_distance(b, c) + 1e-12


def test_prompts_are_embedded_without_answer_and_padding():
    table = torch.arange(10.0)[:, None].repeat(1, 2)
    # Prompts (1, 5) and (4,); answers (7, 9) and (8, 9), whose 9 is the end that is never read; 0 is padding.
    split = EncodedSplit(torch.tensor([[1, 5, 7], [4, 8, 0]]), torch.tensor([[IGNORED, 7, 9], [8, 9, IGNORED]]), torch.tensor([3, 2]))
    assert prompt_embeddings(split, np.array([0, 1]), table).tolist() == [[3.0, 3.0], [4.0, 4.0]]


def test_instruction_distances_are_of_the_base_and_cost_no_weights(run):
    before = InstructionDistances(run)(run.observe())
    assert set(before) == {"safety", "general"}
    assert min(before.values()) > 0
    run.advance(baseline("no_replay").decide(run.observe()))
    tuned = run.learner.flat.detach().clone()
    assert not torch.equal(tuned, run.learner.base)
    assert InstructionDistances(run)(run.observe()) == before
    assert torch.equal(run.learner.flat, tuned)


def test_a_source_is_no_way_from_itself(run):
    current = run.tasks[0]
    run.anchors = [
        replace(current, name="twin", buffer=current.train),
        replace(run.anchors[0], buffer=current.train.__class__(*empty(current.train))),
    ]
    assert InstructionDistances(run)(run.observe()) == {"twin": 0.0, run.anchors[1].name: 0.0}


def empty(split):
    return split.input_ids[:0], split.labels[:0], split.lengths[:0]


def test_balanced_replay_by_hand(run):
    boundary = second_task(run)
    buffers = {source.name: source.buffer for source in run.visible if source.name != boundary.current.name}
    counts, lengths = example_counts(run, boundary), inverse_lengths(run, boundary)
    assert {name: counts[name] for name in buffers} == {name: len(buffer) for name, buffer in buffers.items()}
    assert {name: lengths[name] for name in buffers} == pytest.approx(
        {name: 1 / float(buffer.lengths.double().mean()) for name, buffer in buffers.items()}
    )
    weights = rival("random_examples_20", run).decide(boundary).weights
    assert weights["general"] == pytest.approx(0.2 * len(buffers["general"]) / sum(map(len, buffers.values())))
    weights = rival("random_tokens_20", run).decide(boundary).weights
    tokens = [weights[name] * float(buffer.lengths.double().mean()) for name, buffer in buffers.items()]
    assert tokens == pytest.approx([tokens[0]] * 3)


@pytest.mark.parametrize("method", METHODS)
def test_rivals_steer_a_run_and_repeat_it(smoke_builder, smoke_case, method):
    first, again = (decisions(smoke_builder, smoke_case, method) for _ in range(2))
    assert first == again
    assert all(decision.controller == method for decision in first)
    assert all(sum(decision.weights.values()) == pytest.approx(1) and min(decision.weights.values()) >= 0 for decision in first)


@pytest.mark.parametrize("method", METHODS)
def test_no_rival_depends_on_later_tasks(smoke_builder, smoke_case, method):
    """Another second task, a shorter one, or none: the decisions of the first task stay."""
    expected = decisions(smoke_builder, smoke_case, method)[:2]
    first, second = smoke_case.tasks
    for tasks, steps in [
        ((first, builtin_source("cipher@heldout-0")), (3, 1)),
        ((first,), (3,)),
        ((first, builtin_source("cipher@heldout-0"), second), (3, 2, 2)),
    ]:
        assert decisions(smoke_builder, replace(smoke_case, tasks=tasks, steps_per_stage=steps), method)[:2] == expected


def decisions(builder, case, method):
    run = builder.build(case)
    return [record.decision for record in run_continual(run, rival(method, run, FOUND))]


def test_numbers_stand_for_words_in_names(run):
    def share(method):
        boundary = run.observe()
        controller = rival(method, run, FOUND)
        assert controller.name == controller.decide(boundary).controller == method
        return 1 - controller.decide(boundary).weights[boundary.current.name]

    assert share("random_realised") == pytest.approx(0.274)
    assert share("proportional_chosen") == pytest.approx(0.355)
    assert share("ramp_chosen") == pytest.approx(2 / 9)
    assert share("grad_sim_chosen") == pytest.approx(0.4)
    assert share("inscl_12.5") == pytest.approx(0.125)
    assert share("schedule_tuned") == pytest.approx(0.1)
    assert share("doremi") == pytest.approx(5 / 9)


@pytest.mark.parametrize("method", ["grad_sim", "grad_sim_101", "inscl_x", "random_chosen", "doremi_static", "proxymix"])
def test_an_unknown_rival_is_the_users_to_mend(run, method):
    with pytest.raises(UserError, match=r"methods: must be.*grad_sim_<0\.\.100>"):
        rival(method, run, FOUND)


def test_a_learner_that_cannot_tell_is_refused(run):
    run.learner, learner = object(), run.learner
    try:
        with pytest.raises(TypeError, match="inscl needs a Learner"):
            rival("inscl_30", run)
        with pytest.raises(TypeError, match="grad_sim needs a Learner"):
            gradient_conflicts(run, None)
    finally:
        run.learner = learner
