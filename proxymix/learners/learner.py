"""Language models being tuned: a step on a global batch, losses and accuracies on probes, their whole state in memory.

Batch → rank's slice → answer-only cross entropy → flat gradient → (all-reduce) → clip → AdamW

One model as a rule; with a model of several replicas, as many runs go through every step together, each on a batch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.adamw import adamw

from proxymix.data.encoding import IGNORED, Batch, EncodedSplit, side_by_side, stack
from proxymix.errors import NonFiniteLossError
from proxymix.learners.models import LanguageModel
from proxymix.learners.schedule import rate_factor

if TYPE_CHECKING:
    from proxymix.config import TuningConfig

EVALUATION_ROWS = 128
"""Rows that are validated at a time, at most; bounds the memory of a large model's probes, and keeps a tiny one's in the cache."""


class Learner:
    """Tunes `model`. All tuned parameters live in one flat tensor, so clip, update, snapshot and all-reduce are one call each."""

    def __init__(
        self, model: LanguageModel, tuning: TuningConfig, *, rank: int = 0, world_size: int = 1, reduce: Callable[[Tensor], None] | None = None
    ) -> None:
        """Args: `reduce` sums a tensor in place over the ranks; needed when `world_size` > 1."""
        self.model, self.tuning = model, tuning
        self.rank, self.world_size, self.reduce = rank, world_size, reduce
        tuned = {id(p): p for p in model.parameters() if p.requires_grad}
        self.parameters = list(tuned.values())
        self.flat = _flatten(self.parameters, model.num_replicas)
        self.base = self.flat.detach().clone()
        self.shape = model.shape
        self.begin_task(1)

    def begin_task(self, num_optimizer_steps: int) -> None:
        """A fresh optimizer and a fresh cosine over the task's `num_optimizer_steps`."""
        self.num_steps, self.steps_done = num_optimizer_steps, 0
        moments = {name: torch.zeros_like(self.flat, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
        self.moments = moments | {"step": torch.zeros((), device=self.flat.device)}

    def train_step(self, batch: Batch) -> float:
        """One optimizer step of the one model on the *global* batch, of which this rank computes its slice.

        Returns:
            Mean loss over the whole batch, nats per answer token.

        Raises:
            NonFiniteLossError: before any weight changed.
        """
        return self.train_steps([batch])[0]

    def train_steps(self, batches: Sequence[Batch]) -> list[float]:
        """One optimizer step of every replica on its own batch, `[num_replicas]`; as `train_step` otherwise."""
        batch = side_by_side(batches)
        # The divisor is the global one, so that summing the ranks' gradients is the one-worker gradient.
        num_answer_tokens = (batch.labels != IGNORED).sum((1, 2)).to(self.flat.device)
        rows = slice(self.rank, None, self.world_size)
        losses = self._token_losses(Batch(batch.input_ids[:, rows], batch.labels[:, rows])).sum((1, 2)) / num_answer_tokens
        gradient = self._gradient(self.objective(losses))
        losses = losses.detach()
        if self.reduce is not None:
            self.reduce(gradient)
            self.reduce(losses)
        norms = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        values, sizes = torch.cat([losses, norms[:, 0]]).view(2, -1).tolist()  # Waits for the device once.
        if not all(map(math.isfinite, (*values, *sizes))):
            # Losses first: they tell whose fault it is, while one replica's may go into the gradients of others.
            replica = next(index for index, value in enumerate((*values, *sizes)) if not math.isfinite(value)) % len(values)
            raise NonFiniteLossError.of(values[replica], sizes[replica], self.steps_done, replica=replica)
        self._update(gradient.mul_((self.tuning.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)))
        self.steps_done += 1
        return list(values)

    def losses(self, probes: Mapping[str, EncodedSplit]) -> dict[str, float]:
        """Mean loss of every probe, nats per answer token; all probes go through the model together."""
        return self.losses_of_all(probes)[0]

    def losses_of_all(self, probes: Mapping[str, EncodedSplit]) -> list[dict[str, float]]:
        """`losses` of every replica on the same probes."""
        batch, owners = stack(list(probes.values()))
        with torch.no_grad():
            losses = torch.cat([token_losses(*read).double().sum(-1).cpu() for read in self._read(batch)], dim=1)  # [replicas, rows]
        totals = torch.zeros(len(losses), len(probes), dtype=torch.float64).index_add_(1, owners, losses)
        counts = torch.zeros(len(probes), dtype=torch.float64).index_add_(0, owners, (batch.labels != IGNORED).double().sum(1))
        return [dict(zip(probes, means, strict=True)) for means in (totals / counts).tolist()]

    def accuracies(self, probes: Mapping[str, EncodedSplit]) -> dict[str, Tensor]:
        """Whether each row's whole answer would be generated greedily, bool `[num_rows]` per probe.

        Teacher-forced: the argmax is right at every answer position exactly if greedy decoding yields the answer.
        """
        return self.accuracies_of_all(probes)[0]

    def accuracies_of_all(self, probes: Mapping[str, EncodedSplit]) -> list[dict[str, Tensor]]:
        """`accuracies` of every replica on the same probes."""
        batch, _ = stack(list(probes.values()))
        with torch.no_grad():
            parts = [((scores.argmax(-1) == labels) | (labels == IGNORED)).all(-1).cpu() for scores, labels in self._read(batch)]
        rights = torch.split(torch.cat(parts, dim=1), [len(probe) for probe in probes.values()], dim=1)
        return [{name: right[replica] for name, right in zip(probes, rights, strict=True)} for replica in range(self.model.num_replicas)]

    def objective(self, losses: Tensor) -> Tensor:
        """What a step descends, of this rank's parts of the replicas' losses `[num_replicas]`: their sum, and no more."""
        return losses.sum()

    def gradient(self, split: EncodedSplit) -> Tensor:
        """Of the mean loss on all rows of `split`, `[num_tuned_weights]`, on this rank alone; no weight changes. For a learner of one replica."""
        total = torch.zeros_like(self.flat)
        num_answer_tokens = split.batch().num_answer_tokens
        for start in range(0, len(split), self.tuning.batch_size):  # No more rows at a time than a step has, so no more memory.
            rows = slice(start, start + self.tuning.batch_size)
            losses = self._token_losses(Batch(split.input_ids[None, rows], split.labels[None, rows]))
            total += self._gradient(losses.sum() / num_answer_tokens)
        return total[0]

    def base_token_embeddings(self) -> Tensor:
        """What the base model reads tokens with, a copy, `[vocabulary, width]`; the weights of now stay as they are, to the bit."""
        tuned = self.flat.detach().clone()
        with torch.no_grad():
            self.flat.copy_(self.base)
            table = self.model.token_embeddings().clone()
            self.flat.copy_(tuned)
        return table

    def restore_base(self) -> None:
        """Back to the weights the learner was built with; no file is read."""
        with torch.no_grad():
            self.flat.copy_(self.base)
        self.begin_task(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments and the place in the schedule."""
        tensors = {"flat": self.flat.detach(), "progress": torch.tensor([self.num_steps, self.steps_done])}
        return tensors | {f"optimizer.{name}": value for name, value in self.moments.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        num_steps, steps_done = tensors["progress"].tolist()
        with torch.no_grad():
            self.flat.copy_(tensors["flat"])
        self.begin_task(num_steps)
        self.steps_done = steps_done
        for name, value in self.moments.items():
            value.copy_(tensors[f"optimizer.{name}"])

    def _gradient(self, objective: Tensor) -> Tensor:
        """Of `objective` by the tuned parameters, `[num_replicas, num_tuned_weights]`."""
        parts = torch.autograd.grad(objective, self.parameters, materialize_grads=True)
        return torch.cat([part.reshape(len(self.flat), -1) for part in parts], dim=1)

    @torch.no_grad()
    def _update(self, gradient: Tensor) -> None:
        """AdamW of the one flat tensor. torch's own, as a function: its optimizer object costs a tiny model more than the arithmetic."""
        average, square, step = (self.moments[name] for name in ("exp_avg", "exp_avg_sq", "step"))
        rate = self.tuning.learning_rate * rate_factor(self.steps_done, self.num_steps, self.tuning.warmup_fraction)
        decay = self.tuning.weight_decay
        settings: dict[str, Any] = {"lr": rate, "weight_decay": decay, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}
        adamw([self.flat], [gradient], [average], [square], [], [step], fused=True, **settings)

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the vocabulary and labels at answer positions alone, `[replicas, rows, most answer tokens of a row, …]`."""
        places, labels = answer_places(batch.labels)
        input_ids, places, labels = (tensor.to(self.flat.device) for tensor in (batch.input_ids, places, labels))
        return self.model.logits(input_ids, places).float(), labels

    def _token_losses(self, batch: Batch) -> Tensor:
        """Loss at each answer position of `[replicas, rows, length]`; 0 where a row has fewer than another."""
        return token_losses(*self._answers(batch))

    def _read(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """`_answers` of every replica to the same rows `[rows, length]`, a part of them at a time."""
        replicas = self.model.num_replicas
        num_parts = math.ceil(len(batch.labels) / max(1, EVALUATION_ROWS // replicas))
        for rows in zip(batch.input_ids.tensor_split(num_parts), batch.labels.tensor_split(num_parts), strict=True):
            yield self._answers(Batch(*(values.expand(replicas, -1, -1) for values in rows)))


def token_losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy, nats, `[…]` for `scores` `[…, vocabulary]`; 0 where the label is IGNORED."""
    return F.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED).view(labels.shape)


def answer_places(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the answers are.

    Args:
        labels: `[replicas, rows, length]`, IGNORED outside answers.

    Returns:
        Positions in the row and their labels, `[replicas, rows, most answer tokens of a row]`; the surplus of the other rows is position 0,
        labelled IGNORED.
    """
    scored = labels != IGNORED
    places = (~scored).byte().argsort(dim=-1, stable=True)[..., : int(scored.sum(-1).max())]
    labels = labels.gather(-1, places)
    return places.masked_fill(labels == IGNORED, 0), labels


def _flatten(parameters: Sequence[nn.Parameter], num_replicas: int) -> nn.Parameter:
    """One leaf `[num_replicas, size]` that holds all `parameters`, which become views of it."""
    flat = nn.Parameter(torch.cat([p.detach().reshape(num_replicas, -1) for p in parameters], dim=1))
    offset = 0
    for parameter in parameters:
        size = parameter.numel() // num_replicas
        parameter.data = flat.data[:, offset : offset + size].view_as(parameter)
        offset += size
    return flat
