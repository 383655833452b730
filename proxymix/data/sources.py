"""One entry point for examples, whatever their format.

SourceConfig → reader of its format → Pools → split_source → Source
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from proxymix.config import Config, SourceConfig
from proxymix.data.chat import as_chat
from proxymix.data.fitting import say_once
from proxymix.data.formats import read_cl_benchmark, read_jsonl, read_trace
from proxymix.data.hub import read_huggingface
from proxymix.data.splits import Pools, SplitSizes, source_generator, split_source
from proxymix.data.xstest import read_xstest
from proxymix.errors import UserError
from proxymix.types import Scorer, Source

VALIDATION_ROWS = 64
"""Rows of each source's validation split; the controller sees the loss of the first `tuning.probe_size`."""


def configured_source(config: Config, spec: SourceConfig) -> Source:
    """The source `spec` describes, with splits of the configured sizes: the same rows wherever the run asks for it."""
    tuning = config.tuning
    sizes = SplitSizes(
        buffer=tuning.anchor_buffer_size if spec in config.sequence.anchors else tuning.buffer_size,
        validation=max(VALIDATION_ROWS, tuning.probe_size),
        test=config.evaluation.test_size,
    )
    source = load_source(spec, data_root=config.data_root, sizes=sizes, seed=config.seed)
    if not config.sequence.chat:
        return source
    train, buffer, validation, test = (tuple(map(as_chat, split)) for split in (source.train, source.buffer, source.validation, source.test))
    return replace(source, train=train, buffer=buffer, validation=validation, test=test)


def load_source(spec: SourceConfig, *, data_root: str | None, sizes: SplitSizes, seed: int) -> Source:
    """The source that `spec` describes, with disjoint splits.

    Deterministic in the seed, format, path and task, and the data: which other sources there are changes nothing.

    Args:
        spec: format and place of the data.
        data_root: where relative paths start; None: the working directory.
        sizes: upper bounds of the splits; `spec.limit` bounds train further.
        seed: of the run.

    Raises:
        UserError: the data is missing or wrong; names file and row.
    """
    sizes = replace(sizes, train=min((size for size in (sizes.train, spec.limit) if size is not None), default=None))
    if spec.format == "builtin":
        from proxymix.data.builtin import build_source  # it builds on `splits`, so it cannot be imported before this package is

        return replace(build_source(str(spec.task), spec.world, sizes, seed), name=spec.label)
    # By where the rows come from, not by label: the same file under another name must not get other test rows.
    generator = source_generator(seed, "/".join((spec.format, spec.path or "", spec.task or "")))
    left_out: list[str] | None = [] if spec.unfit == "drop" else None
    pools = _read(spec, Path(data_root or "."), generator, left_out)
    if left_out:
        say_once(f"source {spec.label!r}: {len(left_out)} rows without a prompt or an answer are left out, the first: {left_out[0]}")
    if spec.harmful is not None:
        pools = Pools(*(tuple(replace(row, harmful=spec.harmful) for row in rows) for rows in (pools.train, pools.validation, pools.test)))
    return replace(_scored(split_source(spec.label, pools, sizes, generator), spec.scorer), unfit=spec.unfit)


def _scored(source: Source, scorer: Scorer | None) -> Source:
    """With the scorer that is asked for, if its rows have what it needs."""
    needs = {"refusal": "harmful", "unit_tests": "tests"}.get(scorer or "")
    if needs and any(getattr(row, needs) is None for row in source.test):
        raise UserError(f"source {source.name!r}: scorer {scorer} needs {needs!r} in every test row; give it in columns or use another scorer")
    return replace(source, scorer=scorer or source.scorer)


def _read(spec: SourceConfig, root: Path, generator: np.random.Generator, left_out: list[str] | None) -> Pools:
    path = root / (spec.path or "")  # an absolute `spec.path` replaces the root
    match spec.format:
        case "jsonl":
            return read_jsonl(path, left_out)
        case "cl_benchmark":
            return read_cl_benchmark(path, str(spec.task), left_out)
        case "trace":
            return read_trace(path, str(spec.task), left_out)
        case "xstest":
            return read_xstest(path, path.parent / spec.completions if spec.completions else None, generator)
        case _:  # huggingface, the one left
            return read_huggingface(str(path) if path.exists() else str(spec.path), spec.columns, spec.task, spec.split, left_out, spec.revision)
