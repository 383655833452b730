"""Named sequences, after those of the paper, and random ones for controller training.

"style@heldout-0" → ("lexicon@heldout-0", "cipher@heldout-0", …)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from proxymix.data.builtin.broken import BROKEN_SEQUENCES
from proxymix.data.builtin.draws import pick, shuffled
from proxymix.data.builtin.worlds import ATTACKS, TASK_TYPES, make_world
from proxymix.errors import UserError

SEQUENCES: Mapping[str, tuple[str, ...]] = {
    "sharp_shift": ("table_large", "modular", "roleplay"),
    "style": ("lexicon", "cipher", "reformat", "reverse"),
    "safety_first": ("refusal_format", "roleplay", "table_small", "reformat"),
    "long": ("table_small", "reverse", "modular", "lexicon", "roleplay"),
    "related": ("table_small", "table_conflict", "lexicon", "lexicon_conflict"),
    "very_long": ("table_small", "cipher", "persuasion", "operation", "lexicon", "reformat", "compare", "roleplay"),
}
"""Task types in order; the first five mirror S1–S5 of the paper in number and in spirit."""

ATTACK_PROBABILITY = 0.7


def named_sequence(name: str) -> tuple[str, ...]:
    """The task specs `type@world` of `sequence@world`.

    >>> named_sequence("sharp_shift@heldout-0")
    ('table_large@heldout-0', 'modular@heldout-0', 'roleplay@heldout-0')

    Raises:
        UserError: the sequence or the world does not exist; says which do.
    """
    sequence, separator, world = name.partition("@")
    named = {**SEQUENCES, **BROKEN_SEQUENCES}
    if sequence not in named or not separator:
        raise UserError(f"sequence.tasks: must be <name>@<world> with a name of {', '.join(named)}, got {name!r}; e.g. 'style@heldout-0'")
    make_world(world)
    return tuple(f"{task}@{world}" for task in named[sequence])


def random_order(rng: np.random.Generator, num_tasks: int, worlds: Sequence[str]) -> tuple[str, ...]:
    """`num_tasks` distinct task types of one of `worlds`, in random order; seven in ten attack safety at least once.

    Raises:
        UserError: more tasks are asked for than there are types without attacks, or a world does not exist.
    """
    peaceful = [task for task in TASK_TYPES if task not in ATTACKS]
    if not 1 <= num_tasks <= len(peaceful):
        raise UserError(f"num_tasks: must lie between 1 and {len(peaceful)}, got {num_tasks}")
    if not worlds:
        raise UserError("worlds: must name at least one world, got none; e.g. ['train-0']")
    world = make_world(pick(rng, worlds)).name
    if rng.random() < ATTACK_PROBABILITY:
        attack = pick(rng, ATTACKS)
        others = shuffled(rng, [task for task in TASK_TYPES if task != attack])
        chosen = (attack, *others[: num_tasks - 1])
    else:
        chosen = shuffled(rng, peaceful)[:num_tasks]
    return tuple(f"{task}@{world}" for task in shuffled(rng, chosen))
