"""A global batch cut into what goes through the model at a time, on this worker.

    Batch → rows by length → lines (one row each, or packs) → dealt to the workers → Portions of a few lines

Every worker gets as many portions of as many lines as any other, for collective calls must meet; a line may be empty. What a worker computes
depends on how many there are, what the batch is does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proxymix.data.encoding import IGNORED, Batch

Line = list[int]
"""Rows of the batch that stand end to end."""


@dataclass(frozen=True)
class Portion:
    """Some lines of tokens, padded on the right."""

    input_ids: Tensor
    """`[num_lines, length]`."""
    labels: Tensor
    """`[num_lines, length]`, as in `Batch`."""
    rows: Tensor
    """`[num_lines, length]`: the batch's row at every place; 0 at padding, where nothing is scored."""
    positions: Tensor | None
    """`[num_lines, length]`: place within the row, starting at 0; None where no line has more than one row."""


def portions(batch: Batch, *, rank: int = 0, world_size: int = 1, lines_at_once: int | None = None, pack_tokens: int | None = None) -> list[Portion]:
    """What one worker computes of `batch`.

    Args:
        batch: every row ends with its answer.
        rank: of this worker, in [0, world_size).
        world_size: workers that share the batch.
        lines_at_once: lines of a portion; None: all of the worker's.
        pack_tokens: most tokens of a line of several rows; None: every line is one row.
    """
    lengths = row_lengths(batch.labels)
    # Longest first: a portion's rows are alike, so little is padding, and a machine too small is found out at once.
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    lines = [[row] for row in longest_first] if pack_tokens is None else first_fit(longest_first, lengths, pack_tokens)
    most = -(-len(lines) // world_size)
    mine: list[Line] = [lines[index] if index < len(lines) else [] for index in range(rank, most * world_size, world_size)]
    at_once = lines_at_once or most
    return [_portion(batch, lengths, mine[start : start + at_once]) for start in range(0, most, at_once)]


def row_lengths(labels: Tensor) -> list[int]:
    """Tokens of each row before its padding; labels `[num_rows, length]`."""
    places = torch.arange(1, labels.shape[1] + 1)
    lengths: list[int] = ((labels != IGNORED) * places).amax(1).tolist()
    return lengths


def first_fit(order: Sequence[int], lengths: Sequence[int], room: int) -> list[Line]:
    """Rows in lines of at most `room` tokens, each in the first line that has room for it; a longer row has a line of its own.

    >>> first_fit([0, 1, 2, 3], lengths=[6, 5, 4, 2], room=10)
    [[0, 2], [1, 3]]
    """
    lines: list[Line] = []
    left: list[int] = []
    for row in order:
        index = next((index for index, free in enumerate(left) if free >= lengths[row]), len(lines))
        if index == len(lines):
            lines.append([])
            left.append(room)
        lines[index].append(row)
        left[index] -= lengths[row]
    return lines


def _portion(batch: Batch, lengths: Sequence[int], lines: Sequence[Line]) -> Portion:
    width = max(1, *(sum(lengths[row] for row in line) for line in lines))
    shape = (len(lines), width)
    # Padding is at position 0 everywhere, so that to a model that sees packs each of its tokens is a row of its own.
    input_ids, labels, rows, positions = (torch.full(shape, value) for value in (0, IGNORED, 0, 0))
    for index, line in enumerate(lines):
        start = 0
        for row in line:
            part, length = (index, slice(start, start + lengths[row])), lengths[row]
            input_ids[part], labels[part] = batch.input_ids[row, :length], batch.labels[row, :length]
            rows[part], positions[part] = row, torch.arange(length)
            start += length
    return Portion(input_ids, labels, rows, positions if any(len(line) > 1 for line in lines) else None)
