import numpy as np
import pytest
import torch

from proxymix.cases import draw_cases, load_sources, sequence_tasks
from proxymix.config import CurriculumConfig, SourceConfig, TuningConfig, validated
from proxymix.errors import UserError

TUNING = TuningConfig(steps_per_stage=12)


def test_cases_are_a_function_of_seed_and_index():
    first, longer = (draw_cases(CurriculumConfig(), TUNING, count, seed=4) for count in (3, 6))
    assert longer[:3] == first
    assert len({case.tasks for case in longer}) == 6
    assert len({case.seed for case in longer}) == 6
    assert draw_cases(CurriculumConfig(), TUNING, 3, seed=5) != first


def test_a_case_stays_in_one_world_and_its_lengths_in_their_range():
    curriculum = CurriculumConfig(worlds=["train-0", "train-1"], num_tasks=4, length_range=(0.5, 2.0))
    cases = draw_cases(curriculum, TUNING, 40, seed=0)
    assert {task.world for case in cases for task in case.tasks} == {"train-0", "train-1"}
    for case in cases:
        assert len({task.world for task in case.tasks}) == 1
        assert len({task.label for task in case.tasks}) == len(case.tasks) == 4
        assert all(6 <= steps <= 24 for steps in case.steps_per_stage)
    assert np.std([steps for case in cases for steps in case.steps_per_stage]) > 2


def test_a_pool_of_ones_own():
    pool = [SourceConfig(format="jsonl", path=f"{name}.jsonl") for name in "abcd"]
    cases = draw_cases(CurriculumConfig(pool=pool, num_tasks=3), TUNING, 20, seed=0)
    assert all(len(set(case.tasks)) == 3 and set(case.tasks) <= set(pool) for case in cases)
    assert {task.label for case in cases for task in case.tasks} == set("abcd")


def test_sequences_by_name_and_as_listed(smoke_config):
    assert [task.label for task in sequence_tasks(smoke_config)] == ["table_small", "roleplay"]
    named = validated({"name": "x", "sequence": {"tasks": "style@heldout-0"}}, "x")
    assert [(task.label, task.world) for task in sequence_tasks(named)][:2] == [("lexicon", "heldout-0"), ("cipher", "heldout-0")]


def test_sources_come_in_order_with_splits_of_the_configured_sizes(smoke_config):
    sources = {source.name: source for source in load_sources(smoke_config)}
    assert list(sources) == ["safety", "general", "table_small", "roleplay"]
    assert len(sources["general"].buffer) == smoke_config.tuning.anchor_buffer_size
    assert len(sources["roleplay"].buffer) == smoke_config.tuning.buffer_size
    assert all(len(source.test) <= smoke_config.evaluation.test_size for source in sources.values())
    assert all(source.buffer == source.train[: len(source.buffer)] for source in sources.values())


def test_two_sources_of_one_name_are_the_users_to_mend():
    config = validated({"name": "x", "sequence": {"tasks": ["cipher@heldout-0", "cipher@heldout-1"]}}, "x")
    with pytest.raises(UserError, match="names must be unique, got cipher"):
        load_sources(config)


def test_every_run_starts_at_the_base_model(smoke_builder, smoke_case):
    run = smoke_builder.build(smoke_case)
    with torch.no_grad():
        smoke_builder.learner.flat.add_(1.0)
    again = smoke_builder.build(smoke_case)
    assert torch.equal(again.learner.flat, again.learner.base)
    assert again.sampler.consumed == {}
    assert (run.name, again.steps_per_stage, again.sampler.seed) == ("smoke", [3, 4], 11)
    assert again.tasks[0] is run.tasks[0]  # encoded once


def test_a_range_of_tasks_is_drawn_case_by_case():
    cases = draw_cases(CurriculumConfig(worlds=["train-0"], num_tasks=(3, 6)), TUNING, 40, seed=0)
    assert {len(case.tasks) for case in cases} == {3, 4, 5, 6}
    assert all(len(case.steps_per_stage) == len(case.tasks) for case in cases)
