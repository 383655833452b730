"""What decides the content of a source, without building it: the keys of caches.

    SourceConfig → its settings + SHA-256 of the files it reads;   proxymix modules → a hash of their code

Building a builtin source or parsing a file takes about as long as encoding it, so a key of the rows would save only half. A data set's hub name
is taken at its word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import proxymix
from proxymix.config import Config, SourceConfig

PACKAGE = Path(proxymix.__file__).parent


def content_key(facts: Any) -> str:
    """A short hash of JSON values.

    >>> content_key({"a": 1}) == content_key({"a": 1}) != content_key({"a": 2})
    True
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def source_facts(config: Config, spec: SourceConfig) -> dict[str, Any]:
    """All that decides the rows and splits of a configured source, but for the code."""
    sizes = config.tuning.model_dump(include={"buffer_size", "anchor_buffer_size"}) | {"probe_size": config.tuning.probe_size}
    files = [] if spec.format == "builtin" else file_facts(_files(spec, Path(config.data_root or ".") / (spec.path or "")))
    anchor, test_size = spec in config.sequence.anchors, config.evaluation.test_size
    facts = {"source": spec.model_dump(), "seed": config.seed, "anchor": anchor, "test_size": test_size, "files": files, **sizes}
    return facts | {"chat": config.sequence.chat}


def file_facts(paths: Iterable[Path]) -> list[list[Any]]:
    """Name and SHA-256 of every file, in a fixed order. Each is read once a process, and again when it has changed in any way."""
    found = ((path, path.stat()) for path in set(paths) if path.is_file())
    return sorted([path.name, _sha256(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino)] for path, s in found)


@cache
def code_hash(*parts: str) -> str:
    """Of modules and subpackages of proxymix, such as `data` or `continual.py`: a change of code makes new keys."""
    files = sorted(file for part in parts for file in ([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py")))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@cache
def _sha256(path: Path, *state: int) -> str:
    """Of the content, as long as `state` is the file's: its times alone would not tell of what was put in its place with an old one's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(spec: SourceConfig, path: Path) -> list[Path]:
    if path.is_file():
        return [path, *([path.parent / spec.completions] if spec.completions else [])]
    if spec.format == "huggingface":  # There `task` is a configuration of the data set and no folder.
        return list(path.rglob("*"))
    return [path / "instruction_config.json", *(path / (spec.task or "")).rglob("*")]
