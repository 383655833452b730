"""Encoded sources come back from the cache as they were, and nothing that changes them leaves them there."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import torch

from proxymix.config import SourceConfig
from proxymix.data import encoded_cache
from proxymix.data.encoded_cache import encoded_source
from proxymix.data.encoding import EncodedSplit, encode_source
from proxymix.data.sources import configured_source
from proxymix.learners.models import load_tokenizer


@pytest.fixture
def config(smoke_config, tmp_path):
    return smoke_config.model_copy(update={"cache_root": str(tmp_path / "cache")})


@pytest.fixture(scope="module")
def tokenizer(base_folder):
    return load_tokenizer(base_folder)


@pytest.fixture
def encodings(monkeypatch):
    """How often a source was encoded, by name."""
    names = []
    monkeypatch.setattr(encoded_cache, "encode_source", lambda source, *rest: names.append(source.name) or encode_source(source, *rest))
    return names


def tensors(value, prefix=""):
    found = {}
    for field in fields(value):
        part = getattr(value, field.name)
        found |= tensors(part, f"{field.name}.") if isinstance(part, EncodedSplit) else {prefix + field.name: part}
    return found


def same(first, second):
    a, b = tensors(first), tensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def entry(config):
    [path] = (p for p in (config.run_dir.parent / config.cache_root / "encoded").iterdir())
    return path


@pytest.mark.parametrize("task", ["safety", "general"])
def test_comes_back_as_it_was(config, tokenizer, encodings, task):
    spec = SourceConfig(format="builtin", task=task)
    fresh = encode_source(configured_source(config, spec), tokenizer, config.tuning.max_length, config.tuning.probe_size)
    assert all(same(encoded_source(config, spec, tokenizer), fresh) for _ in range(2))
    assert encodings == [task]


@pytest.mark.parametrize("damage", [lambda data: data[:40], lambda data: data[:-7], lambda data: b"", lambda data: b"\xff" * 200])
def test_a_damaged_entry_is_made_anew(config, tokenizer, encodings, damage):
    spec = SourceConfig(format="builtin", task="safety")
    whole = encoded_source(config, spec, tokenizer)
    entry(config).write_bytes(damage(entry(config).read_bytes()))
    assert all(same(encoded_source(config, spec, tokenizer), whole) for _ in range(2))
    assert encodings == ["safety"] * 2


def test_whatever_shapes_the_tensors_makes_another_entry(config, tokenizer, encodings, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"item {i} :", "response": f"{i}"}) + "\n" for i in range(30)))
    spec = SourceConfig(format="jsonl", path=str(file), name="own")
    variants = [config, config.model_copy(update={"seed": 99})]
    variants += [config.model_copy(update={"tuning": config.tuning.model_copy(update=change)}) for change in ({"max_length": 32}, {"buffer_size": 3})]
    for variant in [*variants, *variants, config.model_copy(update={"name": "another"})]:
        encoded_source(variant, spec, tokenizer)
    assert len(encodings) == len(variants)
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # Touched, and what it was.
    encoded_source(config, spec, tokenizer)
    assert len(encodings) == len(variants)
    file.write_text(file.read_text().replace("item 7 :", "item 8 :"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # Other rows of the same size, unpacked with an old time.
    assert file.stat().st_size == stat.st_size
    encoded_source(config, spec, tokenizer)
    assert len(encodings) == len(variants) + 1


def test_writers_at_once_leave_one_whole_entry(config, tokenizer):
    spec = SourceConfig(format="builtin", task="general")
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(lambda _: encoded_source(config, spec, tokenizer), range(4))
    assert all(same(first, other) for other in others)
    assert same(encoded_source(config, spec, tokenizer), first)
    assert entry(config).suffix == ".safetensors"
