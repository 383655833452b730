"""Seeded choices, and the rule that keeps splits apart.

    prompt → held-out key → sha256 → "train" | "validation" | "test"

The split belongs to the prompt itself, not to a list somewhere: whoever draws, with whatever seed, can never put one prompt in two splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import numpy as np

from proxymix.data.builtin.vocabulary import OBJECTS, VERBS
from proxymix.types import Example

Split = Literal["train", "validation", "test"]
Draw = Callable[[np.random.Generator], Example]

T = TypeVar("T")

_REQUEST_WORDS = frozenset((*VERBS, *OBJECTS))
_PATIENCE = 1000


def seeded_rng(*key: object) -> np.random.Generator:
    """A generator that depends on `key` alone, the same in every process and on every platform."""
    return np.random.default_rng(int.from_bytes(_digest("/".join(str(part) for part in key)), "big"))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, uniformly."""
    return options[int(rng.integers(len(options)))]


def shuffled(rng: np.random.Generator, options: Sequence[T]) -> tuple[T, ...]:
    """All of `options` in random order."""
    return tuple(options[i] for i in rng.permutation(len(options)))


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to: 70 % train, 10 % validation, 20 % test.

    Requests are held out by their verb and object, so a tested pair was never seen in any frame or by any task; others by the whole prompt.
    """
    request = [word for word in prompt.split() if word in _REQUEST_WORDS]
    bucket = int.from_bytes(_digest(" ".join(request) or prompt)[:4], "big") % 10
    return "train" if bucket < 7 else "validation" if bucket < 8 else "test"


def draw_distinct(draw: Draw, split: Split, num: int, rng: np.random.Generator) -> tuple[Example, ...]:
    """Up to `num` examples of `split` with distinct prompts; fewer only where the task has no more."""
    found: dict[str, Example] = {}
    misses = 0
    while len(found) < num and misses < _PATIENCE:
        example = draw(rng)
        if example.prompt in found or split_of(example.prompt) != split:
            misses += 1
            continue
        found[example.prompt] = example
        misses = 0
    return tuple(found.values())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]
