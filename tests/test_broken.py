"""The tasks that break mirroring, and that all else stays as it was."""

import hashlib
import re
from itertools import combinations, product
from types import SimpleNamespace

import pytest

from proxymix.data.builtin import (
    ANCHORS,
    BROKEN_SEQUENCES,
    BROKEN_TYPES,
    SEQUENCES,
    TASK_TYPES,
    VOCABULARY,
    build_source,
    make_world,
    named_sequence,
    pretraining_examples,
)

SIZES = SimpleNamespace(buffer=8, validation=4, test=8, train=24)


NEWER = re.compile(r", messages=\(\), tests=None|, unfit='error'")


def test_what_was_there_before_is_unchanged_to_the_last_byte():
    digest = hashlib.sha256()
    for task, world in [*((anchor, None) for anchor in ANCHORS), *product(TASK_TYPES, ("train-0", "heldout-0"))]:
        # As it was written before examples could hold messages and tests, and sources drop rows; these do not.
        digest.update(NEWER.sub("", repr(build_source(task, world, SIZES, 0))).encode())
    for value in (make_world("base-3"), pretraining_examples(300, 0), SEQUENCES):
        digest.update(NEWER.sub("", repr(value)).encode())
    assert digest.hexdigest() == "4778bd9027a6e9d046427fc05896eca3cb42940d30d787d286709e1db0176224"


@pytest.mark.parametrize("name", BROKEN_SEQUENCES)
def test_broken_sequences_can_be_built_of_the_vocabulary(name):
    for spec in named_sequence(f"{name}@heldout-0"):
        source = build_source(*spec.split("@"), SIZES, 0)
        assert len(source.train) >= 16  # `table_small` has no more
        for example in (*source.train, *source.validation, *source.test):
            assert set(f"{example.prompt} {example.response}".split()) <= set(VOCABULARY)


def test_their_tags_are_nobody_elses():
    world = make_world("heldout-0")
    tags = {build_source(task, "heldout-0", SIZES, 0).train[0].prompt.split()[0] for task in BROKEN_TYPES if task != "contrary"}
    assert len(tags) == len(BROKEN_TYPES) - 1
    assert not tags & set(world.tags.values())


@pytest.mark.parametrize("task", ["noise_numbers", "noise_letters", "contrary"])
def test_splits_are_disjoint_and_answers_belong_to_the_prompt(task):
    source = build_source(task, "heldout-0", SIZES, 0)
    splits = [{example.prompt for example in split} for split in (source.train, source.validation, source.test)]
    assert not any(first & second for first, second in combinations(splits, 2))
    assert build_source(task, "heldout-0", SIZES, 0) == source


def test_contrary_is_never_the_skill_it_looks_like():
    for example in build_source("contrary", "heldout-0", SIZES, 0).train:
        skill, *letters = example.prompt.split()
        assert example.response.split() != (letters[::-1] if skill == "reverse" else letters)
