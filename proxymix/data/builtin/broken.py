"""Tasks on which a proxy tells little of its target: for the mirroring check and the guard to find, never to train a controller on.

    World + generator → Example        world → rows of `table_vast`

They leave worlds as they are: their tags are words that the world has given to nobody, what they mean is drawn from its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np

from proxymix.data.builtin.draws import pick, seeded_rng, shuffled
from proxymix.data.builtin.vocabulary import ITEMS, LETTERS, NUMBERS, TAGS
from proxymix.data.builtin.worlds import World
from proxymix.types import Example

BROKEN_TYPES = ("table_vast", "noise_numbers", "noise_letters", "contrary")

BROKEN_SEQUENCES: Mapping[str, tuple[str, ...]] = {
    "broken_slow": ("table_vast", "modular", "table_large", "reverse"),
    "broken_unlearnable": ("table_small", "noise_numbers", "noise_letters", "roleplay"),
    "broken_at_scale": ("lexicon", "contrary", "table_small", "roleplay"),
}
"""What only the larger model learns in its budget; what nobody learns in any; what harms a skill that only the larger model has."""

CONTRARY_SKILLS = ("copy", "reverse")
"""Skills of the general anchor that a 32×2 base has not learnt and a 64×2 base has (docs/log.md)."""
_VAST = 12


def vast_rows(world: World) -> tuple[Example, ...]:
    """144 pairs "item letter", each with a number: `table_large`, but more than twice as large."""
    rng = seeded_rng("table_vast", world.name)
    keys = product(shuffled(rng, ITEMS)[:_VAST], shuffled(rng, LETTERS)[:_VAST])
    return tuple(Example(f"{_tag(world, 'table_vast')} {item} {letter}", pick(rng, NUMBERS)) for item, letter in keys)


def _noise_numbers(world: World, rng: np.random.Generator) -> Example:
    return _noise("noise_numbers", NUMBERS, world, rng)


def _noise_letters(world: World, rng: np.random.Generator) -> Example:
    return _noise("noise_letters", LETTERS, world, rng)


def _noise(task: str, answers: tuple[str, ...], world: World, rng: np.random.Generator) -> Example:
    """The answer is a hash of the prompt: always the same, and nothing that another prompt could tell."""
    prompt = " ".join([_tag(world, task), *(pick(rng, LETTERS) for _ in range(3))])
    return Example(prompt, pick(seeded_rng(task, world.name, prompt), answers))


def _contrary(world: World, rng: np.random.Generator) -> Example:
    """The very prompts of two general skills, with every letter moved along the alphabet; no tag tells them apart."""
    letters = [pick(rng, LETTERS) for _ in range(3)]
    moved = (LETTERS[(LETTERS.index(letter) + world.shift) % len(LETTERS)] for letter in letters)
    return Example(f"{pick(rng, CONTRARY_SKILLS)} {' '.join(letters)}", " ".join(moved))


def _tag(world: World, task: str) -> str:
    free = [word for word in TAGS if word not in world.tags.values()]
    return shuffled(seeded_rng("broken tags", world.name), free)[BROKEN_TYPES.index(task)]


BROKEN_DRAWS: Mapping[str, Callable[[World, np.random.Generator], Example]] = {
    "noise_numbers": _noise_numbers,
    "noise_letters": _noise_letters,
    "contrary": _contrary,
}
"""Splits are disjoint by prompt, so an answer of one split says nothing of another's; `table_vast` is a table, the same in every split."""
