"""What is made of the builtin tasks: named sequences, random orders, and the mixture of pre-training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_builtin import Sizes

from proxymix.data.builtin import ATTACKS, SEQUENCES, TASK_TYPES, build_source, make_world, named_sequence, pretraining_examples, random_order
from proxymix.data.builtin.draws import split_of
from proxymix.data.builtin.pretraining import BASE_WORLDS
from proxymix.data.builtin.tasks import TABLES, table_rows
from proxymix.data.builtin.vocabulary import TAGS
from proxymix.errors import UserError


def test_named_sequences_can_be_built():
    assert {name: len(tasks) for name, tasks in SEQUENCES.items()} == {
        "sharp_shift": 3,
        "style": 4,
        "safety_first": 4,
        "long": 5,
        "related": 4,
        "very_long": 8,
    }
    for name in SEQUENCES:
        specs = named_sequence(f"{name}@heldout-0")
        assert len(set(specs)) == len(specs)
        for spec in specs:
            assert build_source(*spec.split("@"), Sizes(), 0).train


@pytest.mark.parametrize("name", ["sharp_shift", "poem@heldout-0", "style@mars", "style@"])
def test_a_wrong_sequence_is_refused(name):
    with pytest.raises(UserError):
        named_sequence(name)


@given(st.integers(0, 2**32), st.integers(1, 14))
def test_random_orders_are_distinct_tasks_of_one_world(seed, num_tasks):
    specs = random_order(np.random.default_rng(seed), num_tasks, ["train-0", "train-5"])
    tasks, worlds = zip(*(spec.split("@") for spec in specs), strict=True)
    assert len(set(tasks)) == num_tasks
    assert set(tasks) <= set(TASK_TYPES)
    assert set(worlds) in ({"train-0"}, {"train-5"})


def test_seven_in_ten_random_orders_attack_safety_anywhere_in_the_order():
    rng = np.random.default_rng(0)
    orders = [[spec.split("@")[0] for spec in random_order(rng, 5, ["train-0"])] for _ in range(1000)]
    attacked = [[task in ATTACKS for task in order] for order in orders]
    assert 0.65 < np.mean([any(places) for places in attacked]) < 0.75
    assert np.mean(attacked, axis=0).min() > 0.1


@pytest.mark.parametrize(("num_tasks", "worlds"), [(0, ["train-0"]), (15, ["train-0"]), (3, []), (3, ["nowhere"])])
def test_an_impossible_random_order_is_refused(num_tasks, worlds):
    with pytest.raises(UserError):
        random_order(np.random.default_rng(0), num_tasks, worlds)


def test_pretraining_sees_anchors_and_base_worlds_alone():
    examples = pretraining_examples(6000, 0)
    assert examples == pretraining_examples(6000, 0)
    assert examples != pretraining_examples(6000, 1)
    assert all(split_of(example.prompt) == "train" for example in examples)
    tags = {(make_world(name).tags[task]): None for name in BASE_WORLDS for task in TASK_TYPES if task not in ATTACKS}
    tasks = [example for example in examples if example.prompt.split()[0] in TAGS]
    assert all(example.prompt.split()[0] in tags for example in tasks)
    safety = [example for example in examples if example.harmful is not None]
    assert len(safety) / len(examples) == pytest.approx(0.10, abs=0.02)
    assert len(tasks) / len(examples) == pytest.approx(0.35, abs=0.03)
    assert not any(example.response.startswith("sure") for example in tasks)  # no attack


@pytest.mark.parametrize("task", TABLES)
def test_pretraining_knows_no_table_of_a_later_world(task):
    """By tag and key: what a base world's table says is seen, what a held-out world's says is a coincidence at most."""
    seen = set(pretraining_examples(6000, 0))
    base = [row for name in BASE_WORLDS for row in table_rows(task, make_world(name))]
    later = [row for kind in ("heldout", "train") for index in range(5) for row in table_rows(task, make_world(f"{kind}-{index}"))]
    assert np.mean([row in seen for row in base]) > 0.1
    assert np.mean([row in seen for row in later]) < 0.02
