"""Where a target run goes on from: its last few stage boundaries, each a folder of shards with their hashes.

    save: a worker's part → copied at once → (in the background) <place>/<stage>-<attempt>/<shard>-of-<n>.safetensors, then its .sha256
    resume: the newest checkpoint whose shards are all there and as they were written → whole tensors, one at a time

A hash is written after its shard, so a checkpoint is whole or can be told from one: there is nothing to commit, and no worker waits for another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import torch
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from proxymix.errors import SupersededError, UserError
from proxymix.learners.parallel import num_parts, part

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"\d{6,}-[0-9a-f]{8}")
HASH = re.compile(r"\d+-of-(\d+)\.sha256")


def check_storage(place: str | None) -> None:
    """Makes sure that checkpoints can be kept at `place`, by writing a few bytes there and removing them. None: nothing to check.

    Raises:
        UserError: it is no place that fsspec knows here, or this process may not write there.
    """
    if place is None:
        return
    files, root = _located(place)
    probe = f"{root.rstrip('/')}/probe-{uuid4().hex}"
    remedy = "set it to a folder or URL that may be written, and export what its file system asks for (credentials, endpoint)"
    with _faults_told(files, f"target.checkpoints.storage: could not write to {place!r}", remedy):
        files.makedirs(root, exist_ok=True)
        files.pipe_file(probe, b"proxymix")
        files.rm_file(probe)


def _located(place: str) -> tuple[AbstractFileSystem, str]:
    try:
        files, root = url_to_fs(place)
    except Exception as error:  # Whatever a file system's own library raises when it is made.
        raise UserError(
            f"target.checkpoints.storage: must be a folder or a URL that fsspec knows here, got {place!r} ({type(error).__name__}: {error}); "
            "mend it, or install its file system where tuning runs (s3fs, gcsfs, adlfs, …)"
        ) from error
    return files, root


@contextmanager
def _faults_told(files: AbstractFileSystem, fault: str, remedy: str) -> Iterator[None]:
    """What a file system raises, as one message. Those far away raise what their HTTP clients do, which has no common kind."""
    try:
        yield
    except (UserError, SupersededError):
        raise
    except Exception as error:
        if isinstance(files, LocalFileSystem) and not isinstance(error, (OSError, SafetensorError)):
            raise
        raise UserError(f"{fault} ({type(error).__name__}: {error}); {remedy}") from error


class Checkpoints:
    """Of one target run, as one of its workers sees them."""

    def __init__(self, place: str, keep: int = 2, rank: int = 0) -> None:
        """Nothing is read or written yet.

        Args:
            place: folder or fsspec URL that all workers see.
            keep: whole checkpoints that stay beside the one that is being written.
            rank: this worker's.

        Raises:
            UserError: fsspec cannot say what `place` is.
        """
        self.place, self.keep, self.rank = place, keep, rank
        self._files, self._root = _located(place)
        self.attempt = uuid4().hex[:8]
        """Keeps a checkpoint's shards from mixing with those of a group that died over it; must be the same on all workers."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def newest(self) -> str | None:
        """Name of the newest whole checkpoint; torn ones on the way to it are removed. None: there is none.

        For one worker to ask, before any of them saves.

        Raises:
            UserError: it cannot be found out.
        """
        with self._reading():
            return self._newest()

    def _newest(self) -> str | None:
        for name in reversed(self._names()):
            fault = self._fault(name)
            if fault is None:
                return name
            logger.warning("checkpoint %s/%s is refused: %s; the one before it is used", self.place, name, fault)
            self._files.rm(f"{self._root}/{name}", recursive=True)
        return None

    @contextmanager
    def read(self, name: str) -> Iterator[tuple[Any, Mapping[str, Tensor]]]:
        """What was saved as `name`: the progress, and the state's tensors, whole; good within the context.

        Raises:
            UserError: it cannot be read.
        """
        with ExitStack() as stack:
            with self._reading():
                folder = Path(self._root, name)
                if not isinstance(self._files, LocalFileSystem):
                    folder = Path(stack.enter_context(TemporaryDirectory()))
                    for path in self._files.ls(f"{self._root}/{name}", detail=False):
                        self._files.get_file(path, str(folder / path.rsplit("/", 1)[-1]))
                paths = sorted(folder.glob("*.safetensors"), key=lambda path: int(path.name.split("-")[0]))
                shards = [stack.enter_context(safe_open(path, "pt")) for path in paths]
            yield json.loads(shards[0].metadata()["progress"]), WholeTensors(shards)

    def save(
        self,
        stage: int,
        state: Mapping[str, Tensor],
        progress: Any,
        first: Callable[[], None] | None = None,
        last: Callable[[], None] | None = None,
    ) -> None:
        """Copies this worker's part of `state` and begins to write it, once what was begun before is written.

        Args:
            stage: stages tuned so far; names the checkpoint.
            state: tensors, spread out or the same on all workers.
            progress: a JSON value, the same on all workers.
            first: what the first worker must write before: where it fails, or dies over it, the checkpoint is not whole.
            last: called before this worker's part becomes whole; where it fails, that does not.

        Raises:
            UserError: of `wait`.
        """
        self.wait()
        num_shards = max(map(num_parts, state.values()))
        if self.rank < num_shards:
            mine = {name: value for name, value in state.items() if self.rank == 0 or num_parts(value) > 1}
            copies = {name: part(value).to("cpu", copy=True).contiguous() for name, value in mine.items()}
            told = {"progress": json.dumps(progress, allow_nan=False)} if self.rank == 0 else None
            shard = f"{stage:06d}-{self.attempt}", f"{self.rank}-of-{num_shards}"
            self.begin(lambda: self._write(*shard, copies, told, first, last))

    def begin(self, write: Callable[[], None]) -> None:
        """Lets `write` go on in the background, once what was begun before is written.

        Raises:
            UserError: of `wait`.
        """
        self.wait()
        self._pending = self._writer.submit(write)

    def wait(self) -> None:
        """Until what `save` began is written.

        Raises:
            UserError: it could not be.
        """
        pending, self._pending = self._pending, None
        remedy = "the stage boundary before is kept: make room, or see that it can be written, and run the same command again to go on from it"
        with _faults_told(self._files, f"target.checkpoints: could not write to {self.place!r}", remedy):
            if pending is not None:
                pending.result()

    def clear(self) -> None:
        """Removes all checkpoints; for one worker, when none saves."""
        if self._files.exists(self._root):
            self._files.rm(self._root, recursive=True)

    def close(self) -> None:
        """Waits for what is being written, whatever comes of it."""
        self._writer.shutdown()

    def _write(
        self,
        name: str,
        shard: str,
        tensors: dict[str, Tensor],
        told: dict[str, str] | None,
        first: Callable[[], None] | None,
        last: Callable[[], None] | None,
    ) -> None:
        if first is not None:
            first()
        folder = f"{self._root}/{name}"
        if told is not None:  # One worker tidies up. All that is there is whole: nobody begins before everybody has finished the one before.
            for old in [other for other in self._names() if other != name][: -self.keep]:
                self._files.rm(f"{self._root}/{old}", recursive=True)
        self._files.makedirs(folder, exist_ok=True)
        with TemporaryDirectory() as elsewhere:
            local = isinstance(self._files, LocalFileSystem)
            path = Path(folder if local else elsewhere, f"{shard}.safetensors")
            save_file(tensors, path, told)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not local:
                self._files.put_file(str(path), f"{folder}/{path.name}")
        if last is not None:
            last()
        self._seal(f"{folder}/{shard}.sha256", digest)

    def _seal(self, path: str, digest: str) -> None:
        self._files.pipe_file(path, digest.encode())

    def _reading(self) -> AbstractContextManager[None]:
        remedy = "see that it can be read, and run the same command again"
        return _faults_told(self._files, f"target.checkpoints: could not read from {self.place!r}", remedy)

    def _names(self) -> list[str]:
        """Of all checkpoints, whole or not, oldest first."""
        if not self._files.exists(self._root):
            return []
        self._files.invalidate_cache()
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False))
        return sorted(name for name in names if CHECKPOINT.fullmatch(name))

    def _fault(self, name: str) -> str | None:
        """Why checkpoint `name` is not to be trusted; None: it is whole."""
        folder = f"{self._root}/{name}"
        seals = [match for path in self._files.ls(folder, detail=False) if (match := HASH.fullmatch(path.rsplit("/", 1)[-1]))]
        num_shards = int(seals[0][1]) if seals else 1
        shards = [f"{folder}/{index}-of-{num_shards}" for index in range(num_shards)]
        with ThreadPoolExecutor() as pool:  # Hashing leaves the interpreter to others.
            return next((fault for fault in pool.map(self._shard_fault, shards) if fault is not None), None)

    def _shard_fault(self, shard: str) -> str | None:
        try:
            with self._files.open(f"{shard}.safetensors", "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if self._files.cat_file(f"{shard}.sha256").decode() == digest:
                return None
        except FileNotFoundError:
            return f"shard {shard.rsplit('/', 1)[-1]} is missing"
        return f"shard {shard.rsplit('/', 1)[-1]} is not as it was written"


class WholeTensors(Mapping[str, Tensor]):
    """Tensors of a checkpoint, each put together from its shards when it is asked for."""

    def __init__(self, shards: Sequence[Any]) -> None:
        """Args: shards: opened, in the order of the workers that wrote them."""
        self._holders: dict[str, list[Any]] = {}
        for shard in shards:
            for name in shard.keys():  # noqa: SIM118 (it is no mapping)
                self._holders.setdefault(name, []).append(shard)

    def __getitem__(self, name: str) -> Tensor:
        parts = [shard.get_tensor(name) for shard in self._holders[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)  # Parts follow each other along the first dimension (`parallel.part`).

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)
