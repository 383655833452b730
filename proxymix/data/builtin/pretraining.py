"""What base models are pre-trained on: a broad mixture that never touches a training or held-out world.

10 % safety + 55 % general + 35 % tasks of base-0…base-5 → list[Example]
"""

from __future__ import annotations

import numpy as np

from proxymix.data.builtin.anchors import draw_general
from proxymix.data.builtin.draws import pick, seeded_rng, split_of
from proxymix.data.builtin.requests import draw_safety
from proxymix.data.builtin.tasks import DRAWS, TABLES, table_rows
from proxymix.data.builtin.worlds import ATTACKS, TASK_TYPES, make_world
from proxymix.types import Example

SAFETY_SHARE, GENERAL_SHARE = 0.10, 0.55
BASE_WORLDS = tuple(f"base-{index}" for index in range(6))


def pretraining_examples(num: int, seed: int) -> list[Example]:
    """`num` examples in random order, all of training splits; repeats are legal, as in any large corpus."""
    rng = seeded_rng("pretraining", seed)
    return [_draw(rng) for _ in range(num)]


def _draw(rng: np.random.Generator) -> Example:
    kind = rng.random()
    while True:  # 70 % of all prompts are of the training split, so this ends soon
        if kind < SAFETY_SHARE:
            example = draw_safety(rng, bool(rng.integers(2)))
        elif kind < SAFETY_SHARE + GENERAL_SHARE:
            example = draw_general(rng)
        else:
            example = _draw_task(rng)
        if split_of(example.prompt) == "train":
            return example


def _draw_task(rng: np.random.Generator) -> Example:
    world = make_world(pick(rng, BASE_WORLDS))
    task = pick(rng, [name for name in TASK_TYPES if name not in ATTACKS])
    return pick(rng, table_rows(task, world)) if task in TABLES else DRAWS[task](world, rng)
