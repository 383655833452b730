"""Does an engine answer as the model that was saved? The trainer leaves a fingerprint beside the weights, the engine is asked the same.

    learner + first validation rows → fingerprint.json       engine.log_probabilities(the same tokens) → difference → within the tolerance?

The logit check of docs/decisions/0015: a stale, partial or wrong update of an engine's weights changes what it thinks of tokens it is shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from proxymix.artifacts import read_json, write_json
from proxymix.data.encoding import IGNORED, EncodedSplit
from proxymix.evaluation.generation import Generator
from proxymix.learners.interface import StageLearner

FILE = "fingerprint.json"
NUM_ROWS = 4
NUM_TOKENS = 24
"""Of a row, its last: chat templates begin all alike."""
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}
"""Root of the mean squared difference that rounding may cause, nats, by `target.precision`. Measured: see docs/decisions/0015."""


class StaleWeightsError(Exception):
    """An engine that was given other weights does not answer as they should."""


@dataclass(frozen=True)
class Fingerprint:
    """What a model thinks of a few rows of tokens."""

    tokens: list[list[int]]
    log_probabilities: list[list[float]]
    """Nats, of every token but the first of its row, given those before it in the row."""

    @classmethod
    def of(cls, learner: StageLearner, splits: Sequence[EncodedSplit]) -> Fingerprint:
        """Taken of the model being tuned, which stays as it is; every worker takes part.

        Args:
            learner: of one replica.
            splits: the first row of each of the first few is shown.
        """
        tokens = [split.input_ids[0, : int(split.lengths[0])][-NUM_TOKENS:].tolist() for split in splits[:NUM_ROWS]]
        # A learner tells mean losses, so it is asked for one token at a time. That needs nothing of it that it does not have, however it is spread.
        read = iter(learner.losses_of_all({str(index): one for index, one in enumerate(_one_by_one(tokens))})[0].values())
        return cls(tokens, [[round(-next(read), 6) for _ in row[1:]] for row in tokens])

    @classmethod
    def read(cls, folder: str | Path) -> Fingerprint | None:
        """The one beside the weights in `folder`; None: nobody left one there."""
        content = read_json(Path(folder) / FILE)
        return None if content is None else cls(**content)

    def write(self, folder: Path) -> None:
        """Beside the weights."""
        write_json(folder / FILE, asdict(self))

    def difference(self, generator: Generator) -> float:
        """Root of the mean squared difference between what the model thinks and what `generator` does, nats; infinite where that is no number."""
        measured = generator.log_probabilities(self.tokens)
        pairs = [pair for rows in zip(self.log_probabilities, measured, strict=True) for pair in zip(*rows, strict=True)]
        square = sum((ours - theirs) ** 2 for ours, theirs in pairs) / max(1, len(pairs))
        return math.sqrt(square) if math.isfinite(square) else math.inf


def _one_by_one(rows: Sequence[Sequence[int]]) -> Iterator[EncodedSplit]:
    """Every token but the first of its row as the answer to those before it."""
    for row in rows:
        for place in range(1, len(row)):
            labels = torch.full((1, place), IGNORED)
            labels[0, -1] = row[place]
            yield EncodedSplit(torch.tensor([row[:place]]), labels, torch.tensor([place]))
