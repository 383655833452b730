"""A controller that would answer otherwise the second time is not asked a second time, whenever the run is killed."""

from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from test_failures import full_disk
from test_journal import KilledError, killed_after, rows, same, weights

from proxymix.answers import AskedOnce
from proxymix.continual import run_continual
from proxymix.controllers.baselines import Ramp
from proxymix.controllers.held import HeldDecisions
from proxymix.errors import UserError
from proxymix.journal import RunJournal
from proxymix.types import Decision, SourceReading, StageBoundary

STAGES = [(0, 0), (0, 1), (1, 0), (1, 1)]
BOUNDARY = StageBoundary(0, 0, 2, (SourceReading("math", "current", (2.0,)),))


class Moody:
    """Says a ramp's mixture at first, and another each time it is asked the same again."""

    name = "moody"

    def __init__(self, asked):
        self.asked = asked

    def decide(self, boundary):
        place = boundary.task_index, boundary.stage_index
        self.asked[place] += 1
        return Decision(Ramp(2.0 * self.asked[place]).decide(boundary).weights, self.name, "ab" * 32)


@pytest.fixture
def tune(smoke_builder, smoke_case, base_folder, tmp_path):
    """What every start of the job does, to the end or to where the worker dies."""

    def tune(folder, asked, every=1):
        run = smoke_builder.build(smoke_case)
        journal = RunJournal(tmp_path / folder, smoke_builder.learner, Path(base_folder))
        try:
            journal.resume(run)
            run_continual(run, HeldDecisions(journal.asking(lambda sha256: Moody(asked)), every, journal.last_decision), journal)
        finally:
            journal.close()
        return journal.folder

    return tune


def outcome(folder):
    return rows(folder), [weights(folder, task) for task in (0, 1)]


def assert_same(folder, whole):
    (found, models), (expected, others) = outcome(folder), outcome(whole)
    assert found == expected
    assert all(same(*pair) for pair in zip(models, others, strict=True))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("stage", range(4))
def test_a_run_that_dies_within_a_stage_goes_on_with_what_was_decided(tune, smoke_builder, monkeypatch, every, stage):
    asked, learner = Counter(), type(smoke_builder.learner)
    whole = tune("whole", Counter(), every)
    train_steps, steps, dies_at = learner.train_steps, count(), [1, 4, 7, 11][stage]  # Stages of the first task have 3 steps, of the second 4.

    def struck(self, batches):
        if next(steps) == dies_at:
            raise KilledError
        return train_steps(self, batches)

    monkeypatch.setattr(learner, "train_steps", struck)
    with pytest.raises(KilledError):
        tune("killed", asked, every)
    at_death = dict(asked)
    assert at_death == {place: 1 for place in STAGES[: stage + 1] if place[1] % every == 0}
    assert_same(tune("killed", asked, every), whole)
    assert set(asked.values()) == {1}
    assert {row["controller"]["name"] for row in rows(whole)} == {"moody"}


def test_a_run_that_dies_before_any_write_goes_on_with_what_was_decided(tune, monkeypatch):
    """Also between a stage's record and its checkpoint: the stage is tuned again, though the next one's answer is there already."""
    whole = tune("whole", Counter())
    for num_writes in count():
        asked = Counter()
        with monkeypatch.context() as patch:
            killed_after(num_writes, patch)
            try:
                tune(f"killed{num_writes}", asked)
            except KilledError:
                pass
            else:
                break  # every write has been the missing one once
        assert_same(tune(f"killed{num_writes}", asked), whole)
        assert set(asked.values()) == {1}
    assert num_writes > 10


def test_the_run_began_with_the_first_hash_that_answered(tmp_path):
    chosen = []

    def choose(sha256):
        chosen.append(sha256)
        return Moody(Counter())

    fallback = {"task_index": 0, "stage_index": 0, "weights": {"math": 1.0}, "controller": {"name": "uniform", "sha256": None}, "fallback": "away"}
    answered = {**fallback, "stage_index": 1, "controller": {"name": "moody", "sha256": "cd" * 32}, "fallback": None}
    AskedOnce(choose, tmp_path / "new.jsonl").decide(BOUNDARY)
    AskedOnce(choose, tmp_path / "new.jsonl")  # Killed in its first stage.
    AskedOnce(choose, tmp_path / "none.jsonl", [fallback])
    AskedOnce(choose, tmp_path / "none.jsonl", [fallback, answered])
    assert chosen == [None, "ab" * 32, None, "cd" * 32]


def test_an_answer_that_cannot_be_kept_is_told(tmp_path):
    with full_disk(0), pytest.raises(UserError, match=r"^runs_root: could not write '.*answers.jsonl' .*: make room"):
        AskedOnce(lambda sha256: Moody(Counter()), tmp_path / "answers.jsonl").decide(BOUNDARY)
