"""What others need of a model being tuned, whoever computes it.

StageLearner: the loop (`proxymix.continual`)          ResumableLearner: whoever builds runs, keeps them and goes on with them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from proxymix.cost import ModelShape
from proxymix.data.encoding import Batch, EncodedSplit
from proxymix.learners.models import LanguageModel

Probes = Mapping[str, EncodedSplit]


class StageLearner(Protocol):
    """A model being tuned, or several side by side."""

    shape: ModelShape
    """What the cost of one model depends on."""

    def begin_task(self, num_optimizer_steps: int) -> None:
        """A fresh optimizer and schedule."""
        ...

    def train_steps(self, batches: Sequence[Batch]) -> list[float]:
        """One optimizer step of each replica on its global batch; returns their mean losses."""
        ...

    def losses_of_all(self, probes: Probes) -> list[dict[str, float]]:
        """Of each replica, the mean loss of every probe, nats per answer token."""
        ...

    def accuracies_of_all(self, probes: Probes) -> list[dict[str, Tensor]]:
        """Of each replica, which rows would be answered right."""
        ...


class ResumableLearner(StageLearner, Protocol):
    """One whose state can be taken and put back."""

    @property
    def model(self) -> LanguageModel:
        """What is tuned."""
        ...

    def restore_base(self) -> None:
        """Back to the weights it was built with."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Tuned weights, optimizer and the place in the schedule; the tensors themselves and no copies."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        ...
