"""Disjoint, seeded splits of one source.

Pools (rows as published) → drop prompts met twice → order by (seed, name) → carve what was not published → Source
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from proxymix.errors import UserError
from proxymix.types import Example, Source

logger = logging.getLogger(__name__)

_LARGEST_CARVE = 4
"""A split carved from the training rows takes at most one in this many, so that small data sets keep something to learn from."""


@dataclass(frozen=True)
class SplitSizes:
    """At most this many examples of each split."""

    buffer: int
    """Kept for replay, a subset of train."""
    validation: int
    """What the controller sees the loss of."""
    test: int
    """What nobody sees before the end."""
    train: int | None = None
    """None: all there are."""


@dataclass(frozen=True)
class Pools:
    """The rows of one source as they were published; an empty validation or test is carved from train."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()
    train_only: tuple[Example, ...] = ()
    """More training rows, which never become validation or test (generated ones, say)."""


def source_generator(seed: int, origin: str) -> np.random.Generator:
    """The random numbers of one source: a function of the seed and of where its rows come from, never of which other sources there are."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(origin.encode()).digest()[:8])])


def split_source(name: str, pools: Pools, sizes: SplitSizes, generator: np.random.Generator) -> Source:
    """A source with disjoint splits; deterministic in `pools`, `sizes` and the state of `generator`.

    Harmful and harmless examples, where told apart, keep their proportion in every split. The scorer is `refusal` if they are told apart.

    Args:
        name: what the source goes by.
        pools: rows as published. A prompt met twice is kept once, in test before validation before train; the number dropped is logged.
        sizes: upper bounds.
        generator: see `source_generator`.

    Raises:
        UserError: a split would be empty (validation: fewer than two examples), or `harmful` is given for some examples only.
    """
    pools = _without_repeats(name, pools)
    train, validation, test = (_interleaved(pool, generator) for pool in (pools.train, pools.validation, pools.test))
    largest = len(train) // _LARGEST_CARVE
    if not test:
        test, train = _cut(train, min(sizes.test, largest))
    if not validation:
        validation, train = _cut(train, min(sizes.validation, largest))
    if pools.train_only:
        train = _interleaved(train + list(pools.train_only), generator)
    train, validation, test = train[: sizes.train], validation[: sizes.validation], test[: sizes.test]
    if not train or len(validation) < 2 or not test:
        found = f"{len(train)} train, {len(validation)} validation, {len(test)} test"
        raise UserError(f"source {name!r}: needs at least 1 train, 2 validation and 1 test example with distinct prompts, got {found}; add rows")
    flagged = {example.harmful is not None for example in (*train, *validation, *test)}
    if len(flagged) == 2:
        raise UserError(f"source {name!r}: harmful must be given in every row of every split or in none, got some of each")
    return Source(
        name, tuple(train), tuple(train[: sizes.buffer]), tuple(validation), tuple(test), scorer="refusal" if True in flagged else "exact_match"
    )


def _cut(examples: list[Example], size: int) -> tuple[list[Example], list[Example]]:
    return examples[:size], examples[size:]


def _without_repeats(name: str, pools: Pools) -> Pools:
    seen: set[str] = set()

    def fresh(split: str, examples: Iterable[Example]) -> tuple[Example, ...]:
        kept = []
        num_dropped = 0
        for example in examples:
            key = " ".join(example.prompt.split())
            if key in seen:
                num_dropped += 1
            else:
                seen.add(key)
                kept.append(example)
        if num_dropped:
            logger.warning(
                "source %r: dropped %d %s rows whose prompt occurs before (in test, validation or the same split)", name, num_dropped, split
            )
        return tuple(kept)

    test, validation = fresh("test", pools.test), fresh("validation", pools.validation)
    return Pools(fresh("train", pools.train), validation, test, fresh("generated", pools.train_only))


def _interleaved(examples: Sequence[Example], generator: np.random.Generator) -> list[Example]:
    """A random order in which any run of neighbours holds harmful and harmless examples in their overall proportion."""
    groups: dict[bool | None, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.harmful].append(index)
    placed: list[tuple[float, int]] = []
    for members in groups.values():
        order = generator.permutation(len(members))
        placed += [((rank + 0.5) / len(members), members[position]) for rank, position in enumerate(order)]
    return [examples[index] for _, index in sorted(placed)]
