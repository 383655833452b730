"""Places that checkpoints may be kept at, and those that cannot be used: told at once, and by the key."""

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from proxymix.checkpoints import Checkpoints, check_storage
from proxymix.errors import UserError

STATE = {"weights.x": torch.arange(6.0)}


class NoCredentialsError(Exception):
    """Like that of s3fs' client: no OSError."""


class Locked(MemoryFileSystem):
    """A bucket whose owner one is not."""

    protocol = "locked"

    def refuse(self, *arguments, **settings):
        raise NoCredentialsError("Unable to locate credentials")

    pipe_file = put_file = ls = refuse

    def exists(self, path, **settings):
        return True


@pytest.fixture
def locked():
    fsspec.register_implementation("locked", Locked, clobber=True)
    return "locked://bucket/runs"


def test_places_that_can_be_written_are_left_as_they_were(tmp_path):
    check_storage(None)
    for place in (str(tmp_path / "here"), f"file://{tmp_path}/there", "memory://bucket/runs"):
        check_storage(place)
        files, root = fsspec.core.url_to_fs(place)
        assert files.ls(root) == []


def test_a_file_url_keeps_checkpoints_like_its_folder(tmp_path):
    kept = Checkpoints(f"file://{tmp_path}/states")
    kept.save(3, STATE, {"rows": [1]})
    kept.wait()
    name = Checkpoints(str(tmp_path / "states")).newest()
    with Checkpoints(f"file://{tmp_path}/states").read(name) as (progress, tensors):
        assert progress == {"rows": [1]}
        assert torch.equal(tensors["weights.x"], STATE["weights.x"])
    kept.clear()
    assert not (tmp_path / "states").exists()


@pytest.mark.parametrize(
    ("place", "fault"),
    [("nosuch://bucket/runs", "ValueError: Protocol not known: nosuch"), ("s3://bucket/runs", "ImportError: Install s3fs to access S3")],
)
def test_a_scheme_that_is_unknown_or_not_installed_is_told(place, fault):
    told = rf"^target.checkpoints.storage: must be a folder or a URL that fsspec knows here, got '{place}' \({fault}\); mend it, or install"
    for use in (check_storage, Checkpoints):
        with pytest.raises(UserError, match=told):
            use(place)


def test_a_place_without_credentials_is_told_before_and_while_tuning(locked):
    with pytest.raises(UserError, match=rf"^target.checkpoints.storage: could not write to '{locked}' \(NoCredentialsError: Unable to locate"):
        check_storage(locked)
    kept = Checkpoints(locked)
    with pytest.raises(UserError, match=rf"^target.checkpoints: could not read from '{locked}' \(NoCredentialsError"):
        kept.newest()
    kept.save(1, STATE, {})
    with pytest.raises(UserError, match=rf"^target.checkpoints: could not write to '{locked}' \(NoCredentialsError.* boundary before is kept"):
        kept.wait()


def test_a_place_that_lets_nothing_be_read_any_more_is_told(locked, tmp_path):
    kept = Checkpoints(str(tmp_path))
    kept.save(1, STATE, {})
    kept.wait()
    name = kept.newest()
    next(tmp_path.rglob("*.safetensors")).write_bytes(b"")
    for lost in (kept, Checkpoints(locked)):
        with pytest.raises(UserError, match=r"^target.checkpoints: could not read from .*; see that it can be read"), lost.read(name):
            pass


def test_a_folder_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^target.checkpoints.storage: could not write to .*file/states' \((NotADirectory|FileExists)Error"):
        check_storage(str(tmp_path / "file" / "states"))


def test_a_mistake_in_what_is_written_is_not_called_the_storages(tmp_path):
    kept = Checkpoints(str(tmp_path))
    kept.begin(lambda: {}["no such key"])
    with pytest.raises(KeyError):
        kept.wait()
