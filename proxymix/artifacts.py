"""Files of a run folder: each is written whole or not at all, and read back as it was.

A reader never sees half a file: the bytes go to a temporary name beside it, are flushed, and are renamed into place.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from proxymix.errors import UserError


def target_folder(run_dir: str | Path, method: str, seed: int) -> Path:
    """Folder of one target run: `<run_dir>/target/<method>/seed<k>`."""
    return Path(run_dir) / "target" / method / f"seed{seed}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes on in it writes `path`, of a run that can be gone on with.

    Raises:
        UserError: it could not be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"runs_root: could not write {str(path)!r} ({error}); every finished stage is kept: make room, and run the same command again"
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` atomically, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replaces `path` atomically with UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` atomically; keys keep their order, NaN is refused (unscored is null)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in `path`, or None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replaces `path` atomically, one JSON value a line."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, row: Any) -> None:
    """Adds one JSON value at the end of `path`, for any number of writers: one at a time, so lines never mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Until the file is closed.
        torn = b""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            torn = b"" if file.read(1) == b"\n" else b"\n"  # A writer was killed in the middle; its line must not take this one with it.
        file.write(torn + json.dumps(row, allow_nan=False).encode() + b"\n")


def read_jsonl(path: Path) -> Iterator[Any]:
    """The rows of `path`; none where there is no file."""
    with suppress(FileNotFoundError):
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Makes folder `path` appear atomically: `fill` writes into a temporary folder that is renamed into place.

    A folder that already exists is replaced; of several writers the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        fill(temporary)
        while not _put_in_place(temporary, path):
            pass
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(folder: Path, path: Path) -> bool:
    """Renames `folder` to `path`, whatever is there; false if another writer was quicker, so that it must be tried again."""
    discarded = folder.with_name(folder.name + ".old")
    with suppress(FileNotFoundError):
        os.replace(path, discarded)
    try:
        os.replace(folder, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(discarded, ignore_errors=True)
    return True


def _temporary(path: Path) -> Path:
    """A hidden name beside `path` that nobody else uses; made by the caller, so that the umask holds."""
    return path.with_name(f".{path.name}.{uuid4().hex}")
