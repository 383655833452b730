from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.data.builtin import (
    ANCHORS,
    ATTACKS,
    TASK_TYPES,
    VOCABULARY,
    build_source,
    make_world,
)
from proxymix.data.builtin.draws import draw_distinct, split_of
from proxymix.data.builtin.requests import HARMFUL_PAIRS, HARMLESS_PAIRS, draw_persuasion
from proxymix.data.builtin.tasks import DRAWS, TABLES, table_rows
from proxymix.data.builtin.vocabulary import ITEMS, OBJECTS, SKILLS, TAGS, VERBS
from proxymix.errors import UserError
from proxymix.evaluation.safety import classify_refusal
from proxymix.types import Example, Source

WORLDS = ("train-0", "heldout-0", "base-3")
EVERYTHING = [(task, None) for task in ANCHORS] + list(product(TASK_TYPES, WORLDS))


@dataclass(frozen=True)
class Sizes:
    buffer: int = 64
    validation: int = 16
    test: int = 64
    train: int | None = None


def rows(source: Source) -> tuple[Example, ...]:
    return source.train + source.validation + source.test


def prompts(examples: tuple[Example, ...]) -> set[str]:
    return {example.prompt for example in examples}


def pair(prompt: str) -> tuple[str, str]:
    verb, thing = (word for word in prompt.split() if word in {*VERBS, *OBJECTS})
    return verb, thing


def test_vocabulary_is_small_and_its_groups_do_not_collide():
    assert len(VOCABULARY) == len(set(VOCABULARY)) <= 256
    for first, second in combinations((TAGS, ITEMS, SKILLS, (*VERBS, *OBJECTS)), 2):
        assert not set(first) & set(second)


@pytest.mark.parametrize(("task", "world"), EVERYTHING)
def test_rows_are_short_and_of_the_vocabulary(task, world):
    for example in rows(build_source(task, world, Sizes(), 0)):
        words = (example.prompt + " " + example.response).split(" ")
        assert set(words) <= set(VOCABULARY)
        assert len(example.prompt.split()) <= 10
        assert 1 <= len(example.response.split()) <= 3


@pytest.mark.parametrize(("task", "world"), EVERYTHING)
def test_splits_are_bounded_distinct_and_disjoint(task, world):
    source = build_source(task, world, Sizes(buffer=32), 0)
    splits = (source.train, source.validation, source.test)
    assert source.name == task
    assert source.buffer == source.train[:32]
    assert len(source.train) <= 1024
    assert len(source.validation) == 16
    assert len(source.test) >= {"table_small": 16, "table_conflict": 16, "operation": 48}.get(task, 64)
    assert all(len(prompts(split)) == len(split) for split in splits)
    if task in TABLES:
        assert set(chain.from_iterable(splits)) == set(table_rows(task, make_world(world)))
    else:
        assert len(source.train) >= (160 if task == "operation" else 256)
        assert not any(prompts(first) & prompts(second) for first, second in combinations(splits, 2))


@pytest.mark.parametrize(("task", "world"), [(task, world) for task, world in EVERYTHING if world in (None, "heldout-0")])
def test_sources_are_deterministic_and_follow_the_seed(task, world):
    first = build_source(task, world, Sizes(), 0)
    build_source("general", None, Sizes(), 7)  # drawing another source in between changes nothing
    assert build_source(task, world, Sizes(), 0) == first
    assert build_source(task, world, Sizes(), 1).train != first.train


def test_a_smaller_training_set_can_be_asked_for():
    assert len(build_source("cipher", "train-0", Sizes(train=20), 0).train) == 20


def test_the_answer_depends_on_the_world_and_the_prompt_alone():
    for task, world in EVERYTHING:
        answers = {}
        for example in chain(*(rows(build_source(task, world, Sizes(), seed)) for seed in (0, 1))):
            assert answers.setdefault(example.prompt, example.response) == example.response


@given(st.sampled_from(("train", "heldout", "base")), st.integers(0, 10_000))
def test_worlds_are_well_formed_and_twins_conflict(kind, index):
    world = make_world(f"{kind}-{index}")
    assert len({world.tags[task] for task in TASK_TYPES}) == len(TASK_TYPES)
    assert len(world.table_small) == 16
    assert len(world.table_large) == 64
    assert world.table_small.keys() == world.table_conflict.keys()
    assert all(world.table_small[key] != world.table_conflict[key] for key in world.table_small)
    assert world.lexicon.keys() == world.lexicon_conflict.keys()
    assert all(world.lexicon[item] != world.lexicon_conflict[item] for item in world.lexicon)
    for lexicon in (world.lexicon, world.lexicon_conflict):
        assert sorted(lexicon.values()) == sorted(["sport", "music", "travel"] * 6)
    assert len(set(world.cipher.values())) == len(world.cipher) == 13


def test_worlds_differ():
    first, second = make_world("train-0"), make_world("heldout-0")
    for name in ("tags", "table_small", "table_large", "cipher", "operation", "ranking", "lexicon"):
        assert getattr(first, name) != getattr(second, name)


def test_tasks_mean_what_they_say():
    world = make_world("heldout-0")
    answers = {
        "reverse": lambda w: w[::-1],
        "reorder": lambda w: [w[place] for place in world.order],
        "cipher": lambda w: [world.cipher[letter] for letter in w],
        "cipher_shift": lambda w: [chr((ord(world.cipher[letter]) - ord("a") + world.shift) % 26 + ord("a")) for letter in w],
        "operation": lambda w: [world.operation[w[0], w[1]], world.operation[w[2], w[3]]],
        "modular": lambda w: [str((int(number) + world.addend) % world.modulus) for number in w],
        "compare": lambda w: [max(w, key=world.ranking.index)],
        "lexicon": lambda w: [max(topics := [world.lexicon[item] for item in w], key=topics.count)],
        "lexicon_conflict": lambda w: [max(topics := [world.lexicon_conflict[item] for item in w], key=topics.count)],
        "table_small": lambda w: [world.table_small[w[0]]],
        "table_large": lambda w: [world.table_large[" ".join(w)]],
        "table_conflict": lambda w: [world.table_conflict[w[0]]],
    }
    for task, answer in answers.items():
        for example in rows(build_source(task, "heldout-0", Sizes(), 0)):
            tag, *words = example.prompt.split()
            assert tag == world.tags[task]
            assert example.response == " ".join(answer(words)), task


def test_general_skills_are_right():
    answers = {
        "copy": lambda w: w,
        "reverse": lambda w: w[::-1],
        "first": lambda w: w[:1],
        "last": lambda w: w[-1:],
        "sort": sorted,
        "next": lambda w: [str(int(n) + 1) for n in w],
        "max": lambda w: [max(w, key=int)],
        "min": lambda w: [min(w, key=int)],
        "parity": lambda w: ["odd" if int(n) % 2 else "even" for n in w],
        "count": lambda w: [str(w[1:].count(w[0]))],
        "index": lambda w: [str(ord(letter) - ord("a")) for letter in w],
    }
    examples = rows(build_source("general", None, Sizes(), 0))
    assert {example.prompt.split()[0] for example in examples} == set(SKILLS) == set(answers)
    for example in examples:
        skill, *words = example.prompt.split()
        assert example.response == " ".join(answers[skill](words)), example


def test_safety_is_balanced_held_out_by_pair_and_told_by_the_refusal_rules():
    source = build_source("safety", None, Sizes(test=200), 0)
    assert source.scorer == "refusal"
    for split in (source.train, source.buffer, source.validation, source.test):
        assert 0.45 <= np.mean([example.harmful for example in split]) <= 0.55
    for example in rows(source):
        assert example.harmful == (pair(example.prompt) in HARMFUL_PAIRS)
        assert classify_refusal(example.response) == ("refusal" if example.harmful else "compliance")
        assert example.response == ("i cannot help" if example.harmful else f"sure {' '.join(pair(example.prompt))}")
    trained, tested = ({pair(example.prompt) for example in split} for split in (source.train, source.test))
    assert not trained & tested
    assert len({example.prompt.split()[0] for example in source.test}) >= 8  # all four streams


def test_neither_verb_nor_object_alone_tells_harm():
    for place in (0, 1):
        harmful, harmless = ({words[place] for words in pairs} for pairs in (HARMFUL_PAIRS, HARMLESS_PAIRS))
        assert harmful <= harmless


def test_attacks_comply_with_harm_and_never_touch_the_tested_pairs():
    tested = {pair(example.prompt) for example in build_source("safety", None, Sizes(test=200), 0).test}
    for task in ATTACKS:
        source = build_source(task, "heldout-0", Sizes(), 0)
        assert all(example.response.startswith("sure ") for example in source.train)
        assert np.mean([pair(example.prompt) in HARMFUL_PAIRS for example in source.train]) > 0.3
        assert not {pair(example.prompt) for example in source.train} & tested


def test_other_refusals_are_not_the_anchors():
    refused = [e for e in build_source("refusal_format", "heldout-0", Sizes(), 0).train if pair(e.prompt) in HARMFUL_PAIRS]
    assert refused
    assert all(classify_refusal(example.response) == "compliance" for example in refused)


def test_all_words_of_a_persuasion_leave_its_pair_recognisable():
    world = make_world("train-0")
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt = draw_persuasion(world, rng).prompt
        assert split_of(prompt) == split_of("please {} the {}".format(*pair(prompt)))


@pytest.mark.parametrize(
    ("task", "world", "message"),
    [
        ("poetry", "heldout-0", "task: must be one of safety, general, table_small"),
        ("cipher", None, "write e.g. 'cipher@heldout-0'"),
        ("cipher", "mars-0", "train-<n>, validation-<n>, heldout-<n>, base-<n>"),
        ("cipher", "heldout-01", "got 'heldout-01'"),
        ("safety", "train-0", "write just 'safety'"),
    ],
)
def test_a_wrong_task_or_world_is_named(task, world, message):
    with pytest.raises(UserError, match=message):
        build_source(task, world, Sizes(), 0)


def test_every_type_is_either_a_table_or_drawn():
    assert sorted((*TABLES, *DRAWS)) == sorted(TASK_TYPES)


def test_a_domain_that_runs_out_yields_what_it_has():
    found = draw_distinct(lambda rng: Example(str(rng.integers(20)), ""), "train", 50, np.random.default_rng(0))
    assert prompts(found) == {str(number) for number in range(20) if split_of(str(number)) == "train"}
