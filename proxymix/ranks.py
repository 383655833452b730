"""The workers of one data-parallel group as one: sums over them, what one finds for all, one fault for all.

    one rank computes → everyone has it          one rank's UserError → every rank's UserError

Nobody may be left alone in a collective call: a rank that gave up quietly would keep the others waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from proxymix.errors import SupersededError, UserError

T = TypeVar("T")
Fault = UserError | SupersededError
"""What is raised on every rank when one finds it."""


@dataclass(frozen=True)
class Ranks:
    """A worker's place in its group; needs an initialised process group if `world_size` > 1."""

    rank: int = 0
    world_size: int = 1

    def reduce(self, tensor: Tensor) -> None:
        """Sums `tensor` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)

    def from_first(self, compute: Callable[[], T]) -> T:
        """What `compute` gives on rank 0, on every rank; it runs nowhere else.

        Raises:
            UserError: rank 0's, on every rank.
        """
        box: list[tuple[T | None, Fault | None] | None] = [_outcome(compute) if self.rank == 0 else None]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        value: T = _settle(box[0])
        return value

    def together(self, compute: Callable[[], T]) -> T:
        """What `compute` gives on this rank, once it went well on all.

        Raises:
            UserError: that of the lowest rank that has one, on every rank.
        """
        mine = _outcome(compute)
        faults: list[Fault | None] = [mine[1]] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(faults, mine[1])
        fault = next((found for found in faults if found is not None), None)
        value: T = _settle((mine[0], fault))
        return value


def _outcome(compute: Callable[[], T]) -> tuple[T | None, Fault | None]:
    try:
        return compute(), None
    except (UserError, SupersededError) as error:
        return None, error


def _settle(outcome: tuple[Any, Fault | None] | None) -> Any:
    assert outcome is not None, "the broadcast has filled it"
    value, fault = outcome
    if fault is not None:
        raise fault
    return value


ALONE = Ranks()
"""The only worker."""
