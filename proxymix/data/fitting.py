"""Rows that fit a model: what its tokenizer makes of prompt and answer has a token each, and leaves room for the answer.

    Source, its rows as tokens → fitting → Source without rows that do not fit, where it drops them; a word about those and about prompts that are cut

Proxy and target read with tokenizers of their own, so a row may fit the one and not the other. Rows without any text are the readers' to leave out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from proxymix.errors import UserError
from proxymix.types import Example, Source

logger = logging.getLogger(__name__)

Reader = Callable[[Example], tuple[list[int], list[int]]]
"""Tokens of prompt and answer, the end token included, uncut."""
SPLITS = {"train": 1, "buffer": 0, "validation": 2, "test": 1}
"""The fewest rows that each may be left with."""


@cache
def say_once(message: str) -> None:
    """Warns, once in a process: a source is read again wherever it is used."""
    logger.warning("%s", message)


def fits(prompt: list[int], answer: list[int], max_length: int) -> bool:
    """Whether both sides say something, and a row of `max_length` tokens holds the whole answer and one token of the prompt."""
    return bool(prompt) and 2 <= len(answer) < max_length


def fitting(source: Source, read: Reader, max_length: int, longest_answer: int | None = None) -> Source:
    """`source` without rows that do not fit if it is to drop them, else as it is; says how many go, and how many prompts lose their beginning.

    Args:
        source: any of its splits may be empty.
        read: how the model reads.
        max_length: tokens of a row.
        longest_answer: tokens that an answer may have besides.

    Raises:
        UserError: too few rows of a split are left.
    """
    rows = [row for split in ("train", "validation", "test") for row in getattr(source, split)]

    def stays(row: Example) -> bool:
        prompt, answer = read(row)
        return source.unfit == "error" or (fits(prompt, answer, max_length) and (longest_answer is None or len(answer) <= longest_answer))

    kept = [row for row in rows if stays(row)]
    num_cut = sum(sum(map(len, read(row))) > max_length for row in kept)
    told = [f"{len(rows) - len(kept)} are dropped, whose answers do not fit"] if len(kept) < len(rows) else []
    told += [f"the prompts of {num_cut} lose their beginning"] if num_cut else []
    if told:
        say_once(f"source {source.name!r}: of {len(rows)} rows {', '.join(told)} (tuning.max_length={max_length})")
    if len(kept) == len(rows):
        return source
    left: dict[str, Any] = {split: tuple(row for row in getattr(source, split) if stays(row)) for split in SPLITS}
    for split, fewest in SPLITS.items():
        if len(left[split]) < min(fewest, len(getattr(source, split))):
            raise UserError(
                f"source {source.name!r}: unfit: drop leaves {len(left[split])} of {len(getattr(source, split))} {split} rows, it needs {fewest}; "
                "raise tuning.max_length (and evaluation.max_new_tokens), or take other data"
            )
    return replace(source, **left)
