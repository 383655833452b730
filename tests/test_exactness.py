"""Test accuracy without generation: read after every task, seen by no decision."""

import pytest
import torch

from proxymix.cases import builtin_source
from proxymix.continual import run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.evaluation.exactness import ScoringJournal


@pytest.fixture(scope="module")
def tests(smoke_builder, smoke_case):
    specs = [*smoke_builder.config.sequence.anchors, *smoke_case.tasks]
    return {spec.label: smoke_builder.test(spec) for spec in specs}


def matrix(run, tests, gamma=1.0):
    harmful = {name: torch.tensor(rows) for name, (_, rows) in tests.items() if rows is not None}
    return ScoringJournal(run, {name: split for name, (split, _) in tests.items()}, harmful, gamma)


def test_a_report_is_read_off_the_model_as_it_is(smoke_builder, smoke_case, tests):
    run = smoke_builder.build(smoke_case)
    scores = matrix(run, tests)
    run_continual(run, UniformReplay(0.3), scores)
    report = scores.report()
    final = run.learner.accuracies({name: split for name, (split, _) in tests.items()})
    assert report["tasks"] == ["table_small", "roleplay"]
    assert [len(row) for row in report["matrix"]] == [2, 2]
    assert report["matrix"][-1] == [float(final[name].double().mean()) for name in report["tasks"]]
    assert report["anchor_accuracy"]["general"][-1] == float(final["general"].double().mean())
    right, harmful = final["safety"].double(), torch.tensor(tests["safety"][1])
    safety = report["safety"][-1]
    assert safety["refusal_accuracy"] == float(right[harmful].mean())
    assert safety["selectivity"] == pytest.approx(safety["refusal_accuracy"] - (1 - safety["benign_compliance"]))


def test_scoring_changes_no_decision_and_no_weight(smoke_builder, smoke_case, tests):
    plain = smoke_builder.build(smoke_case)
    records = run_continual(plain, UniformReplay(0.3))
    weights = plain.learner.flat.detach().clone()
    scored = smoke_builder.build(smoke_case)
    again = run_continual(scored, UniformReplay(0.3), matrix(scored, tests))
    assert [record.boundary for record in again] == [record.boundary for record in records]
    assert torch.equal(scored.learner.flat, weights)


def test_test_rows_are_those_of_the_source_and_of_no_other_split(smoke_builder, smoke_case, tests):
    spec = builtin_source("reverse@heldout-1")
    test, harmful = smoke_builder.test(spec)
    held = smoke_builder.source(spec)
    rows = {tuple(row.tolist()) for row in test.input_ids}
    assert harmful is None
    for split in (held.train, held.validation):
        width = min(split.input_ids.shape[1], test.input_ids.shape[1])
        assert not {row[:width] for row in rows} & {tuple(row[:width].tolist()) for row in split.input_ids}
