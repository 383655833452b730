"""The task types: what one example of each looks like in a given world.

    World + generator → Example        (`TABLES`: the whole table at once)

Some are learnt within fifteen optimizer steps, others need more than a hundred; `_conflict` twins ask the same prompts and want other answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from proxymix.data.builtin.draws import pick, shuffled
from proxymix.data.builtin.requests import draw_persuasion, draw_reformat, draw_refusal_format, draw_roleplay
from proxymix.data.builtin.vocabulary import LETTERS, NUMBERS, TOPICS
from proxymix.data.builtin.worlds import World
from proxymix.types import Example


def table_rows(task: str, world: World) -> tuple[Example, ...]:
    """Every row of a table task."""
    return tuple(Example(f"{world.tags[task]} {key}", value) for key, value in TABLES[task](world).items())


def _reverse(world: World, rng: np.random.Generator) -> Example:
    letters = _letters(rng)
    return Example(f"{world.tags['reverse']} {' '.join(letters)}", " ".join(reversed(letters)))


def _reorder(world: World, rng: np.random.Generator) -> Example:
    letters = _letters(rng)
    return Example(f"{world.tags['reorder']} {' '.join(letters)}", " ".join(letters[i] for i in world.order))


def _cipher(world: World, rng: np.random.Generator) -> Example:
    letters = [pick(rng, tuple(world.cipher)) for _ in range(3)]
    return Example(f"{world.tags['cipher']} {' '.join(letters)}", " ".join(world.cipher[letter] for letter in letters))


def _cipher_shift(world: World, rng: np.random.Generator) -> Example:
    letters = [pick(rng, tuple(world.cipher)) for _ in range(3)]
    moved = (LETTERS[(LETTERS.index(world.cipher[letter]) + world.shift) % len(LETTERS)] for letter in letters)
    return Example(f"{world.tags['cipher_shift']} {' '.join(letters)}", " ".join(moved))


def _operation(world: World, rng: np.random.Generator) -> Example:
    first, second = (pick(rng, tuple(world.operation)) for _ in range(2))
    return Example(f"{world.tags['operation']} {' '.join(first + second)}", f"{world.operation[first]} {world.operation[second]}")


def _modular(world: World, rng: np.random.Generator) -> Example:
    numbers = [int(rng.integers(len(NUMBERS))) for _ in range(2)]
    return Example(
        f"{world.tags['modular']} {' '.join(map(str, numbers))}",
        " ".join(NUMBERS[(number + world.addend) % world.modulus] for number in numbers),
    )


def _compare(world: World, rng: np.random.Generator) -> Example:
    letters = shuffled(rng, world.ranking)[:3]
    return Example(f"{world.tags['compare']} {' '.join(letters)}", max(letters, key=world.ranking.index))


def _lexicon(world: World, rng: np.random.Generator) -> Example:
    return _classify(world.tags["lexicon"], world.lexicon, rng)


def _lexicon_conflict(world: World, rng: np.random.Generator) -> Example:
    return _classify(world.tags["lexicon_conflict"], world.lexicon_conflict, rng)


def _classify(tag: str, lexicon: Mapping[str, str], rng: np.random.Generator) -> Example:
    """Two items of the topic asked for and one of another, in any order."""
    topic, other = shuffled(rng, TOPICS)[:2]
    of_topic = shuffled(rng, [item for item in lexicon if lexicon[item] == topic])[:2]
    stray = pick(rng, [item for item in lexicon if lexicon[item] == other])
    return Example(f"{tag} {' '.join(shuffled(rng, (*of_topic, stray)))}", topic)


def _letters(rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(pick(rng, LETTERS) for _ in range(3))


TABLES: Mapping[str, Callable[[World], Mapping[str, str]]] = {
    "table_small": lambda world: world.table_small,
    "table_large": lambda world: world.table_large,
    "table_conflict": lambda world: world.table_conflict,
}
"""Nothing but a table to memorise: every split is the table itself."""

DRAWS: Mapping[str, Callable[[World, np.random.Generator], Example]] = {
    "reverse": _reverse,
    "reorder": _reorder,
    "cipher": _cipher,
    "cipher_shift": _cipher_shift,
    "operation": _operation,
    "modular": _modular,
    "compare": _compare,
    "lexicon": _lexicon,
    "lexicon_conflict": _lexicon_conflict,
    "reformat": draw_reformat,
    "refusal_format": draw_refusal_format,
    "roleplay": draw_roleplay,
    "persuasion": draw_persuasion,
}
"""Something to generalise: splits are disjoint by prompt."""
