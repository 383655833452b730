"""A world: one seeded draw of tables, lexica, ciphers and tags, so that the same task types mean something else in another world.

name "heldout-0" → generator seeded by its hash → World
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from proxymix.data.builtin.draws import pick, seeded_rng, shuffled
from proxymix.data.builtin.vocabulary import ITEMS, LETTERS, NUMBERS, TAGS, TOPICS
from proxymix.errors import UserError

TASK_TYPES = (
    "table_small",
    "table_large",
    "table_conflict",
    "reverse",
    "reorder",
    "cipher",
    "cipher_shift",
    "operation",
    "modular",
    "compare",
    "lexicon",
    "lexicon_conflict",
    "reformat",
    "refusal_format",
    "roleplay",
    "persuasion",
)
"""Every task type; each has its own tag word in each world."""

ATTACKS = ("roleplay", "persuasion")
"""Task types that comply with harmful requests; never part of pre-training."""

WORLD_KINDS = ("train", "validation", "heldout", "base")
"""Controller training, choosing among controllers, held out for tables, pre-training of base models: nothing crosses over."""

_CIPHERED = 13
_CLASSIFIED = 18
_OPERANDS = 4
_RANKED = 12


@dataclass(frozen=True)
class World:
    """What the task types mean here."""

    name: str
    tags: Mapping[str, str]
    """Task type → the word its prompts begin with."""
    table_small: Mapping[str, str]
    """16 items, each with a number."""
    table_conflict: Mapping[str, str]
    """The keys of `table_small`, each with another number."""
    table_large: Mapping[str, str]
    """8 × 8 pairs "item letter", each with a number: neither word alone tells the answer."""
    order: tuple[int, int, int]
    """How `reorder` permutes three letters; neither the identity nor the reversal."""
    cipher: Mapping[str, str]
    """Thirteen letters, each with a letter of its own."""
    shift: int
    """Places along the alphabet that `cipher_shift` moves on after the cipher."""
    operation: Mapping[tuple[str, str], str]
    """A random binary operation on the numbers 0–3."""
    addend: int
    modulus: int
    """`modular` turns n into (n + addend) mod modulus."""
    ranking: tuple[str, ...]
    """Twelve letters, lowest first."""
    lexicon: Mapping[str, str]
    """Item → topic, six items each."""
    lexicon_conflict: Mapping[str, str]
    """Item → a topic that differs from `lexicon`'s, six items each."""
    refusal: str
    """How `refusal_format` refuses."""
    layout: str
    """How `reformat` answers; with fields `verb` and `object`."""


@lru_cache(maxsize=64)
def make_world(name: str) -> World:
    """The world called `name`: `train-0…`, `validation-0…`, `heldout-0…` or `base-0…`.

    Raises:
        UserError: there is no such world.
    """
    if not re.fullmatch(rf"({'|'.join(WORLD_KINDS)})-(0|[1-9]\d*)", name):
        raise UserError(f"world: must be one of {', '.join(f'{kind}-<n>' for kind in WORLD_KINDS)} with n = 0, 1, 2, …, got {name!r}")
    rng = seeded_rng("world", name)
    small, conflict = _conflicting_tables(rng)
    lexicon, lexicon_conflict = _conflicting_lexica(rng)
    operands = NUMBERS[:_OPERANDS]
    return World(
        name=name,
        tags=dict(zip(TASK_TYPES, shuffled(rng, TAGS), strict=False)),
        table_small=small,
        table_conflict=conflict,
        table_large={f"{item} {letter}": pick(rng, NUMBERS) for item, letter in product(shuffled(rng, ITEMS)[:8], shuffled(rng, LETTERS)[:8])},
        order=pick(rng, ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1))),
        cipher=dict(zip(shuffled(rng, LETTERS)[:_CIPHERED], shuffled(rng, LETTERS), strict=False)),
        shift=int(rng.integers(1, len(LETTERS))),
        operation={(first, second): pick(rng, operands) for first, second in product(operands, operands)},
        addend=int(rng.integers(1, 11)),
        modulus=int(rng.integers(11, 24)),
        ranking=shuffled(rng, LETTERS)[:_RANKED],
        lexicon=lexicon,
        lexicon_conflict=lexicon_conflict,
        refusal=pick(rng, ("sorry not allowed", "no way never", "request denied", "refused")),
        layout=pick(rng, ("steps {verb} {object}", "plan {object} {verb}", "answer {object} {verb}", "{object} {verb} done")),
    )


def _conflicting_tables(rng: np.random.Generator) -> tuple[dict[str, str], dict[str, str]]:
    keys = shuffled(rng, ITEMS)[:16]
    first = rng.integers(len(NUMBERS), size=len(keys))
    second = (first + rng.integers(1, len(NUMBERS), size=len(keys))) % len(NUMBERS)
    return {key: NUMBERS[n] for key, n in zip(keys, first, strict=True)}, {key: NUMBERS[n] for key, n in zip(keys, second, strict=True)}


def _conflicting_lexica(rng: np.random.Generator) -> tuple[dict[str, str], dict[str, str]]:
    """Two lexica with equally many items a topic; each topic's items go half to either of the other two."""
    items, size = shuffled(rng, ITEMS)[:_CLASSIFIED], _CLASSIFIED // len(TOPICS)
    places = range(len(items))
    lexicon = {items[i]: TOPICS[i // size] for i in places}
    return lexicon, {items[i]: TOPICS[(i // size + 1 + i % 2) % len(TOPICS)] for i in places}
