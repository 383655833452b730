"""Searches on problems whose answer is known, within their budget; and runs side by side that are the runs they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.cases import proxy_builder
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.controllers.controls import untrained
from proxymix.reward import final_score
from proxymix.search import PolicySpace, ScheduleSpace, best_ever, cross_entropy, score_together, successive_halving

GOAL = np.array([1.5, -0.5, 0.3])


def answered(search, score):
    """What `search` finds by `score`, and every question."""
    questions = []
    question = next(search)
    while True:
        questions.append(question)
        candidates, case_index = question
        try:
            question = search.send(np.array([score(candidate, case_index) for candidate in candidates]))
        except StopIteration as end:
            return end.value, questions


def closeness(candidate, case_index):
    """Cases differ by much more than candidates do: only pairing makes them comparable."""
    return 100.0 * np.cos(case_index) - float(np.square(candidate - GOAL).sum())


def rng():
    return np.random.default_rng(0)


def test_the_cross_entropy_method_finds_the_goal_within_its_budget():
    found, questions = answered(cross_entropy(np.zeros(3), 20, 16, 1 / 3, rng()), closeness)
    assert found == pytest.approx(GOAL, abs=0.15)
    assert [case_index for _, case_index in questions] == list(range(20))
    assert all(candidates.shape == (16, 3) for candidates, _ in questions)


def test_on_one_case_the_best_candidate_ever_is_found():
    found, questions = answered(best_ever(cross_entropy(np.zeros(3), 4, 8, 1.0, rng())), lambda candidate, _: closeness(candidate, 0))
    everyone = np.concatenate([candidates for candidates, _ in questions])
    assert found.tolist() == max(everyone.tolist(), key=lambda candidate: closeness(np.array(candidate), 0))


def test_halving_keeps_the_better_half_for_new_cases():
    found, questions = answered(successive_halving(np.zeros(3), 0.6, 320, rng()), closeness)
    assert [len(candidates) for candidates, _ in questions] == [80] + [40] * 2 + [20] * 4 + [10] * 8
    assert [case_index for _, case_index in questions] == list(range(15))
    assert found.tolist() == max(questions[0][0].tolist(), key=lambda candidate: closeness(np.array(candidate), 0))
    assert questions[0][0][0].tolist() == [0, 0, 0]  # Random search may answer with where it starts.


@given(st.integers(1, 700))
def test_halving_never_runs_more_than_it_may(num_runs):
    _, questions = answered(successive_halving(np.zeros(3), 0.6, num_runs, rng()), closeness)
    assert sum(len(candidates) for candidates, _ in questions) <= num_runs


def test_a_schedule_starts_at_a_third_and_may_prefer_anchors():
    space = ScheduleSpace(2, 3, by_role=True)
    assert np.shape(space.shares(space.start)) == (2, 3)
    assert np.allclose(space.shares(space.start), 1 / 3, atol=0.002)
    assert space.anchor_scores(space.start) == [1.0, 1.0]
    assert space.anchor_scores(np.append(space.start[:6], np.log([2, 3]))) == pytest.approx([2, 3])
    assert ScheduleSpace(2, 3).anchor_scores(ScheduleSpace(2, 3).start) == []


@pytest.mark.parametrize(("architecture", "hidden_units"), [("equivariant", 0), ("equivariant", 3), ("flat", 4)])
def test_random_policies_start_where_training_does(architecture, hidden_units):
    space = PolicySpace(architecture, hidden_units, 5, seed=7)
    found, expected = space.parameters(space.start), untrained(architecture, hidden_units, 5, 7).policy.parameters
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_side_by_side_as_one_by_one(smoke_config, base_folder, smoke_builder, smoke_case):
    controllers = [baseline("no_replay"), ScheduleSpace(2, 2).controller(np.array([-1.0, 0.0, 1.0, 2.0]))]
    scores, flops = score_together(proxy_builder(smoke_config, base_folder, num_replicas=3), smoke_case, controllers)
    alone = []
    for controller in controllers:
        run = smoke_builder.build(smoke_case)
        run_continual(run, controller)
        alone.append((final_score(run.validation_accuracies()), run.flops))
    assert scores == pytest.approx([score for score, _ in alone], abs=0.02)
    assert flops == sum(each for _, each in alone)  # The idle third replica is in no bill.


def test_entries_that_a_case_has_no_use_for_learn_nothing_from_it():
    search = cross_entropy(np.zeros(4), 3, 8, 1.0, np.random.default_rng(0), used=lambda case_index: 2)
    candidates, _ = next(search)
    while True:
        try:
            candidates, _ = search.send(candidates[:, 0])
        except StopIteration as end:
            found = end.value
            break
    assert found[0] > 0.5
    assert found[2:].tolist() == [0.0, 0.0]
