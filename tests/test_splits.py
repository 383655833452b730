"""Splits: disjoint, bounded, seeded by the source alone, and honest about what they drop."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.config import SourceConfig
from proxymix.data.sources import load_source
from proxymix.data.splits import Pools, SplitSizes, source_generator, split_source
from proxymix.types import Example


def prompts(examples):
    return [example.prompt for example in examples]


def pairs(count):
    return [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(count)]


def write_jsonl(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def load(root, path, sizes=SplitSizes(buffer=4, validation=3, test=5), seed=0):  # noqa: B008
    return load_source(SourceConfig(format="jsonl", path=path), data_root=str(root), sizes=sizes, seed=seed)


def rows(numbers):
    return tuple(Example(f"q{number}", "a") for number in numbers)


@st.composite
def pools(draw):
    """Overlapping pools with enough rows of their own in train, and in validation where it is published at all."""
    anything = st.lists(st.integers(0, 40), max_size=50)
    train, test, generated = ([*draw(anything)] for _ in range(3))
    validation = draw(st.sampled_from([[], [50, 51, *draw(anything)]]))
    return Pools(rows([*train, *range(60, 72)]), rows(validation), rows(test), rows([*generated, *range(80, 85)]))


@given(pools(), st.integers(0, 5), st.integers(2, 9), st.integers(1, 9), st.one_of(st.none(), st.integers(1, 20)), st.integers(0, 3))
def test_splits_are_disjoint_bounded_and_repeatable(pool, buffer, validation, test, train, seed):
    sizes = SplitSizes(buffer, validation, test, train)
    source = split_source("s", pool, sizes, source_generator(seed, "s"))
    splits = [set(prompts(split)) for split in (source.train, source.validation, source.test)]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(source.train) + len(source.validation) + len(source.test)
    assert source.buffer == source.train[:buffer]
    assert len(source.validation) <= validation
    assert len(source.test) <= test
    assert train is None or len(source.train) <= train
    assert splits[0].isdisjoint(prompts(pool.test) + prompts(pool.validation))
    published = {*prompts(pool.train), *prompts(pool.validation), *prompts(pool.test)}
    assert splits[1] | splits[2] <= published  # so never a generated row
    assert source == split_source("s", pool, sizes, source_generator(seed, "s"))


def test_a_source_depends_on_its_seed_and_name_alone(tmp_path):
    write_jsonl(tmp_path / "one.jsonl", pairs(40))
    write_jsonl(tmp_path / "two.jsonl", pairs(40))
    first = load(tmp_path, "one.jsonl")
    load(tmp_path, "two.jsonl")
    assert load(tmp_path, "one.jsonl") == first
    assert load(tmp_path, "one.jsonl", seed=1).test != first.test
    assert load(tmp_path, "two.jsonl").test != first.test


def test_larger_sizes_keep_what_smaller_ones_chose(tmp_path):
    write_jsonl(tmp_path / "one.jsonl", pairs(40))
    small, large = (load(tmp_path, "one.jsonl", SplitSizes(4, 3, test)) for test in (3, 6))
    assert large.test[:3] == small.test


def test_harmful_examples_keep_their_share_everywhere():
    rows = tuple(Example(f"q{i}", "a", harmful=i % 4 == 0) for i in range(400))
    source = split_source("s", Pools(rows), SplitSizes(40, 20, 60), source_generator(0, "s"))
    assert source.scorer == "refusal"
    for split in (source.train, source.buffer, source.validation, source.test):
        assert sum(example.harmful for example in split) == pytest.approx(len(split) / 4, abs=1)


def test_rows_met_twice_are_dropped_from_train_and_counted(tmp_path, caplog):
    write_jsonl(tmp_path / "s" / "train.jsonl", [*pairs(12), *pairs(2)])
    write_jsonl(tmp_path / "s" / "test.jsonl", pairs(3))
    with caplog.at_level(logging.WARNING):
        source = load(tmp_path, "s", SplitSizes(4, 2, 5))
    assert sorted(prompts(source.test)) == ["q0", "q1", "q2"]
    assert len(source.train) + len(source.validation) == 9
    assert "dropped 5 train rows" in caplog.text
