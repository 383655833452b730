import os
from pathlib import Path

import pytest

from proxymix import artifacts
from proxymix.artifacts import read_json, read_jsonl, target_folder, write_bytes, write_folder, write_json, write_jsonl


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_round_trips(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ü"}
    write_json(tmp_path / "deep" / "x.json", value)
    assert read_json(tmp_path / "deep" / "x.json") == value
    assert list(read_json(tmp_path / "deep" / "x.json")) == ["b", "a"]
    write_jsonl(tmp_path / "x.jsonl", [{"a": 1}, {"b": "line\nbreak"}])
    assert list(read_jsonl(tmp_path / "x.jsonl")) == [{"a": 1}, {"b": "line\nbreak"}]


def test_what_is_absent_is_none_or_nothing(tmp_path):
    assert read_json(tmp_path / "absent.json") is None
    assert list(read_jsonl(tmp_path / "absent.jsonl")) == []


@pytest.mark.parametrize("write", [lambda path: write_json(path, float("nan")), lambda path: write_jsonl(path, [{"x": float("inf")}])])
def test_not_a_number_is_never_written(tmp_path, write):
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_bytes(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    home = tmp_path / "runs" / "state"
    write_folder(home, lambda folder: (folder / "old").write_text("1"))
    write_folder(home, lambda folder: (folder / "new").write_text("2"))
    assert [path.name for path in home.iterdir()] == ["new"]
    assert leftovers(home.parent) == []


def test_two_writers_of_one_folder_at_once_both_succeed(tmp_path, monkeypatch):
    rename, late = os.replace, []

    def interleaved(source, target):
        if not late and Path(target) == tmp_path / "base":
            late.append(source)
            write_folder(tmp_path / "base", lambda folder: (folder / "theirs").write_text("2"))
        rename(source, target)

    monkeypatch.setattr(os, "replace", interleaved)
    write_folder(tmp_path / "base", lambda folder: (folder / "ours").write_text("1"))
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["ours"]
    assert leftovers(tmp_path) == []


def test_a_folder_that_fails_half_way_is_not_seen(tmp_path):
    def fill(folder):
        (folder / "half").write_text("1")
        raise RuntimeError("killed")

    write_folder(tmp_path / "state", lambda folder: (folder / "old").write_text("1"))
    with pytest.raises(RuntimeError, match="killed"):
        write_folder(tmp_path / "state", fill)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["old"]
    assert leftovers(tmp_path) == []


def test_readers_never_see_a_part(tmp_path, monkeypatch):
    """At the moment of replacement the new content is already complete under its temporary name."""
    seen = []
    replace = artifacts.os.replace
    monkeypatch.setattr(artifacts.os, "replace", lambda source, target: (seen.append(read_json(Path(source))), replace(source, target)))
    write_json(tmp_path / "x.json", list(range(1000)))
    assert seen == [list(range(1000))]


def test_target_folder(tmp_path):
    assert target_folder(tmp_path, "random_30", 2) == tmp_path / "target" / "random_30" / "seed2"
