"""Encoded sources on disk, shared by every process and run that reads the same rows with the same tokenizer.

(source's facts, tokenizer, max_length) → key → <cache_root>/encoded/<key>.safetensors → memory-mapped EncodedSource
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from proxymix.artifacts import write_bytes
from proxymix.config import Config, SourceConfig
from proxymix.data.encoding import EncodedSource, EncodedSplit, encode_source
from proxymix.data.fingerprints import code_hash, content_key, source_facts
from proxymix.data.sources import configured_source


def encoded_source(config: Config, spec: SourceConfig, tokenizer: Any) -> EncodedSource:
    """The configured source as tensors; encoded now unless the cache holds it. An entry that cannot be read is made anew.

    Raises:
        UserError: the data is missing or wrong, or an answer is longer than `tuning.max_length`.
    """
    tuning = config.tuning
    path = Path(config.cache_root) / "encoded" / f"{_key(config, spec, tokenizer)}.safetensors"
    try:
        return _read(path)
    except (OSError, SafetensorError, TypeError, KeyError):
        source = encode_source(configured_source(config, spec), tokenizer, tuning.max_length, tuning.probe_size)
        write_bytes(path, _to_bytes(source))
        return source


def _key(config: Config, spec: SourceConfig, tokenizer: Any) -> str:
    return content_key([source_facts(config, spec), _tokenizer_hash(tokenizer), config.tuning.max_length, code_hash("data"), torch.__version__])


@lru_cache(maxsize=8)
def _tokenizer_hash(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else [tokenizer.name_or_path, sorted(tokenizer.get_vocab().items())]
    return content_key([text, tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])


def _to_bytes(source: EncodedSource) -> bytes:
    """Every tensor under `field` or `split.field`, every text as metadata."""
    tensors: dict[str, torch.Tensor] = {}
    texts: dict[str, str] = {}
    for field in fields(source):
        value = getattr(source, field.name)
        if isinstance(value, EncodedSplit):
            tensors |= {f"{field.name}.{part.name}": getattr(value, part.name).clone() for part in fields(value)}
        elif isinstance(value, torch.Tensor):
            tensors[field.name] = value
        elif value is not None:
            texts[field.name] = str(value)
    return bytes(save(tensors, metadata=texts))


def _read(path: Path) -> EncodedSource:
    """The inverse; tensors are views of the mapped file, so that processes share its pages."""
    splits: dict[str, dict[str, Any]] = {}
    with safe_open(path, "pt") as file:
        values: dict[str, Any] = {"harmful": None, **file.metadata()}
        for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
            split, _, part = name.rpartition(".")
            (splits.setdefault(split, {}) if split else values)[part] = file.get_tensor(name)
    return EncodedSource(**values | {name: EncodedSplit(**parts) for name, parts in splits.items()})
