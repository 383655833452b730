"""The builtin benchmark: small unequal tasks in words, drawn afresh in every world. No data needed, numpy only.

"cipher" + "heldout-0" → World → draws → Source
"""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from proxymix.data.builtin.anchors import ANCHORS, draw_general
from proxymix.data.builtin.broken import BROKEN_DRAWS, BROKEN_SEQUENCES, BROKEN_TYPES, vast_rows
from proxymix.data.builtin.draws import Split, draw_distinct, seeded_rng, shuffled
from proxymix.data.builtin.pretraining import pretraining_examples
from proxymix.data.builtin.requests import draw_safety
from proxymix.data.builtin.sequences import SEQUENCES, named_sequence, random_order
from proxymix.data.builtin.tasks import DRAWS, TABLES, table_rows
from proxymix.data.builtin.vocabulary import VOCABULARY
from proxymix.data.builtin.worlds import ATTACKS, TASK_TYPES, World, make_world
from proxymix.errors import UserError
from proxymix.types import Example, Source

if TYPE_CHECKING:
    from proxymix.data.splits import SplitSizes

__all__ = [
    "ANCHORS",
    "ATTACKS",
    "BROKEN_SEQUENCES",
    "BROKEN_TYPES",
    "SEQUENCES",
    "TASK_TYPES",
    "VOCABULARY",
    "World",
    "build_source",
    "make_world",
    "named_sequence",
    "pretraining_examples",
    "random_order",
]

TRAIN_SIZE = 768
"""Training examples of a generated task unless `sizes.train` asks for fewer."""


def build_source(task: str, world: str | None, sizes: SplitSizes, seed: int) -> Source:
    """A builtin task or anchor as a source, named after the task type.

    Splits are disjoint by prompt (requests: by verb and object) and the same for a given (task, world, seed), whatever other sources exist. Two
    exceptions: a table task has nothing to generalise, so each of its splits is drawn from the one table; and a small domain may yield fewer
    examples than asked for.

    Raises:
        UserError: the task or the world does not exist, a task lacks its world, or an anchor is given one.
    """
    if task in ANCHORS:
        if world is not None:
            raise UserError(f"world: anchors are the same in every world, got {world!r} for {task!r}; write just {task!r}")
    elif task not in (*TASK_TYPES, *BROKEN_TYPES):
        raise UserError(f"task: must be one of {', '.join((*ANCHORS, *TASK_TYPES, *BROKEN_TYPES))}, got {task!r}")
    elif world is None:
        raise UserError(f"world: the builtin task {task!r} needs one, got none; write e.g. '{task}@heldout-0'")
    collect = partial(_collect, task, world, seed)
    train = collect("train", TRAIN_SIZE if sizes.train is None else min(sizes.train, TRAIN_SIZE))
    return Source(
        name=task,
        train=train,
        buffer=train[: sizes.buffer],
        validation=collect("validation", sizes.validation),
        test=collect("test", sizes.test),
        scorer="refusal" if task == "safety" else "exact_match",
    )


def _collect(task: str, world: str | None, seed: int, split: Split, num: int) -> tuple[Example, ...]:
    """Up to `num` examples of one split, in random order."""
    rng = seeded_rng("source", task, world, seed, split)
    if task == "safety":  # half harmful, half harmless
        refused = draw_distinct(partial(draw_safety, harmful=True), split, (num + 1) // 2, rng)
        answered = draw_distinct(partial(draw_safety, harmful=False), split, num // 2, rng)
        return tuple(example for pair in zip_longest(refused, answered) for example in pair if example)
    if task == "general":
        return draw_distinct(draw_general, split, num, rng)
    home = make_world(world or "")
    if task in TABLES:
        return shuffled(rng, table_rows(task, home))[:num]
    if task == "table_vast":
        return shuffled(rng, vast_rows(home))[:num]
    return draw_distinct(partial({**DRAWS, **BROKEN_DRAWS}[task], home), split, num, rng)
