"""Examples to token tensors, once; every batch after that is a gather.

    Source → EncodedSource (one EncodedSplit each for train, buffer, validation, probe, test) → gather → Batch

Rows are prompt + answer, right-padded; the loss is on the answer and the end token alone, which is predicted and never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from proxymix.cost import BatchShape
from proxymix.data.chat import chat_ids
from proxymix.data.fitting import Reader, fitting
from proxymix.data.sampler import Places
from proxymix.errors import UserError
from proxymix.types import Example, Scorer, Source

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded token rows."""

    input_ids: Tensor
    """`[num_rows, length]`, int64."""
    labels: Tensor
    """`[num_rows, length]`: the *next* token where it belongs to an answer, else -100."""

    @property
    def num_answer_tokens(self) -> int:
        """Positions the loss is taken on."""
        return int((self.labels != IGNORED).sum())

    @property
    def shape(self) -> BatchShape:
        """What its cost depends on; every row has an answer, and ends with it."""
        scored = self.labels.numpy() != IGNORED  # Of small arrays numpy is twice as fast as torch, and every step is asked.
        num_rows, length = scored.shape
        num_padding = int(scored[:, ::-1].argmax(1).sum())
        return BatchShape(num_rows, length, num_rows * length - num_padding, num_rows * int(scored.sum(1).max()))


@dataclass(frozen=True)
class EncodedSplit:
    """All rows of one split, padded to the longest."""

    input_ids: Tensor
    labels: Tensor
    lengths: Tensor
    """Tokens before padding, `[num_rows]`."""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all rows, padding excluded."""
        return int(self.lengths.sum())

    @cached_property
    def longest_answer(self) -> int:
        """Tokens of the longest answer."""
        return int((self.labels != IGNORED).sum(1).max())

    def batch(self) -> Batch:
        """The whole split as one batch."""
        return Batch(self.input_ids, self.labels)


@dataclass(frozen=True)
class EncodedSource:
    """A source as tensors."""

    name: str
    scorer: Scorer
    train: EncodedSplit
    buffer: EncodedSplit
    probe: EncodedSplit
    """The first rows of the validation split: what the controller sees the loss of at every boundary."""
    validation: EncodedSplit
    harmful: Tensor | None
    """Of the validation rows, bool `[num_rows]`; None unless the source is a safety source."""


def encode_split(examples: Sequence[Example], tokenizer: Any, max_length: int) -> EncodedSplit:
    """Token tensors of `examples`. A prompt that is too long is cut from the left; an answer never is.

    Raises:
        UserError: an answer alone is longer than `max_length`, or has no token.
    """
    return _encoded(examples, partial(example_ids, tokenizer=tokenizer), max_length, tokenizer.pad_token_id)


def _encoded(examples: Sequence[Example], read: Reader, max_length: int, padding: int) -> EncodedSplit:
    rows = []
    for example in examples:
        prompt, answer = read(example)
        if not prompt or len(answer) < 2:
            raise UserError(f"data: prompt and response must each have at least one token, got {example.prompt[:60]!r} and {example.response[:60]!r}")
        room = max_length - len(answer)
        if room < 1:
            raise UserError(
                f"tuning.max_length: must hold the whole answer and one prompt token, got {max_length} for an answer of {len(answer)} "
                f"tokens ({example.response[:60]!r}); raise it, or leave such rows out with unfit: drop"
            )
        rows.append((prompt[-room:], answer))
    width = max((len(p) + len(a) - 1 for p, a in rows), default=1)
    input_ids = torch.full((len(rows), width), padding, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for index, (prompt, answer) in enumerate(rows):
        start, end = len(prompt) - 1, len(prompt) + len(answer) - 1
        input_ids[index, :end] = torch.tensor([*prompt, *answer[:-1]])
        labels[index, start:end] = torch.tensor(answer)
    return EncodedSplit(input_ids, labels, torch.tensor([len(p) + len(a) - 1 for p, a in rows], dtype=torch.int64))


def example_ids(example: Example, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of prompt and answer, the end token included, uncut: what the model is tuned on, and asked and expected to say.

    Raises:
        UserError: the example is a chat, and the tokenizer's chat template is missing or cannot render it.
    """
    if example.messages:
        return chat_ids(example, tokenizer)
    answer = tokenizer(response_text(example), add_special_tokens=False)["input_ids"]
    return prompt_ids(example.prompt, tokenizer), [*answer, tokenizer.eos_token_id]


def prompt_ids(prompt: str, tokenizer: Any) -> list[int]:
    """Tokens of a plain prompt as the model is tuned on and asked with: a begin token where the tokenizer has one, then the text."""
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return begin + list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


def response_text(example: Example) -> str:
    """The answer set off from the prompt by one space, unless the prompt already ends in white space."""
    return example.response if example.prompt[-1:].isspace() else f" {example.response}"


def encode_source(source: Source, tokenizer: Any, max_length: int, probe_size: int) -> EncodedSource:
    """`source` as tensors; the test split is left out on purpose (nobody sees it before the end).

    Raises:
        UserError: of `encode_split`; where the source drops rows that do not fit: too few are left.
    """
    read = cache(partial(example_ids, tokenizer=tokenizer))  # Buffer and probe are parts of other splits.
    source = fitting(replace(source, test=()), read, max_length)
    train, buffer, validation, probe = (
        _encoded(rows, read, max_length, tokenizer.pad_token_id)
        for rows in (source.train, source.buffer, source.validation, source.validation[:probe_size])
    )
    harmful = torch.tensor([bool(row.harmful) for row in source.validation]) if source.scorer == "refusal" else None
    return EncodedSource(source.name, source.scorer, train, buffer, probe, validation, harmful)


def fitting_tests(source: Source, tokenizer: Any, max_length: int, longest_answer: int | None = None) -> Source:
    """`source` with its test rows alone, without those that do not fit if it drops them (`fitting`)."""
    tests = replace(source, train=(), buffer=(), validation=())
    return fitting(tests, cache(partial(example_ids, tokenizer=tokenizer)), max_length, longest_answer)


def gather(splits: Sequence[EncodedSplit], places: Sequence[tuple[int, int]]) -> Batch:
    """The rows at `places` (split, row), padded to the longest of them, in that order."""
    return gather_many(splits, [places])[0]


def gather_many(splits: Sequence[EncodedSplit], plan: Sequence[Sequence[tuple[int, int]]]) -> list[Batch]:
    """`gather` for every batch of a `plan`, with one copy from each split for all of them."""
    rows_of: dict[int, list[int]] = {}
    order: dict[int, list[int]] = {}  # Where in the plan those rows belong.
    for place, (split, row) in enumerate(place for places in plan for place in places):
        rows_of.setdefault(split, []).append(row)
        order.setdefault(split, []).append(place)
    indices = {split: torch.tensor(rows) for split, rows in rows_of.items()}
    back = torch.tensor([place for places in order.values() for place in places]).argsort()
    lengths = torch.cat([splits[split].lengths.index_select(0, index) for split, index in indices.items()])
    width = int(lengths.max())
    input_ids, labels = (
        torch.cat([_widened(rows.index_select(0, indices[split])[:, :width], width, value) for split, rows in parts]).index_select(0, back)
        for parts, value in (
            ([(split, splits[split].input_ids) for split in indices], 0),
            ([(split, splits[split].labels) for split in indices], IGNORED),
        )
    )
    sizes = [len(places) for places in plan]
    longest = [int(part.max()) for part in torch.split(lengths.index_select(0, back), sizes)]
    batches = zip(torch.split(input_ids, sizes), torch.split(labels, sizes), longest, strict=True)
    return [Batch(ids[:, :length], targets[:, :length]) for ids, targets, length in batches]


def planned_batches(plan: Sequence[Places], pools: Mapping[str, EncodedSplit]) -> tuple[list[Batch], int]:
    """The batches that a sampler has planned, each of rows of these `pools` by name, and the tokens in all of them."""
    order, splits = {name: index for index, name in enumerate(pools)}, list(pools.values())
    located = [[(order[name], row) for name, row in places] for places in plan]
    lengths = [split.lengths.numpy() for split in splits]  # Element by element, numpy's are read twenty times as fast as torch's.
    num_tokens = sum(int(lengths[s][row]) for places in located for s, row in places)
    return gather_many(splits, located), num_tokens


def side_by_side(batches: Sequence[Batch]) -> Batch:
    """Batches of equally many rows as one, `[num_batches, rows, length]`, padded to the longest."""
    if len(batches) == 1:
        return Batch(batches[0].input_ids[None], batches[0].labels[None])
    length = max(batch.input_ids.shape[1] for batch in batches)
    return Batch(
        torch.stack([pad(batch.input_ids, (0, length - batch.input_ids.shape[1])) for batch in batches]),
        torch.stack([pad(batch.labels, (0, length - batch.labels.shape[1]), value=IGNORED) for batch in batches]),
    )


def stack(splits: Sequence[EncodedSplit]) -> tuple[Batch, Tensor]:
    """All rows of `splits` as one batch, and which split each row came from, `[num_rows]`."""
    width = max(split.input_ids.shape[1] for split in splits)
    columns = zip(*((_widened(split.input_ids, width, 0), _widened(split.labels, width, IGNORED)) for split in splits), strict=True)
    input_ids, labels = (torch.cat(column) for column in columns)
    return Batch(input_ids, labels), torch.repeat_interleave(torch.tensor([len(split) for split in splits]))


def _widened(rows: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]), value=value)


def stacked_shape(splits: Sequence[EncodedSplit]) -> BatchShape:
    """That of `stack(splits)`; nothing is stacked."""
    width = max(split.input_ids.shape[1] for split in splits)
    num_rows = sum(map(len, splits))
    longest = max(split.longest_answer for split in splits)
    return BatchShape(num_rows, width, sum(split.num_tokens for split in splits), num_rows * longest)
