"""One language model being tuned: a step on a global batch, losses and accuracies on probes, its whole state in memory.

Batch → rank's slice → answer-only cross entropy → flat gradient → (all-reduce) → clip → AdamW
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proxymix.config import TuningConfig
from proxymix.data.encoding import IGNORED, Batch, EncodedSplit, stack
from proxymix.errors import UserError
from proxymix.learners.models import LanguageModel

EVALUATION_ROWS = 64
"""Rows that are validated at a time; bounds the memory of a large model's probes, and keeps a tiny one's in the cache (twice as fast as 256)."""


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite; raised before the optimizer touched the weights."""


class Learner:
    """Tunes `model`. All tuned parameters live in one flat tensor, so clip, update, snapshot and all-reduce are one call each."""

    def __init__(
        self, model: LanguageModel, tuning: TuningConfig, *, rank: int = 0, world_size: int = 1, reduce: Callable[[Tensor], None] | None = None
    ) -> None:
        """Args: `reduce` sums a tensor in place over the ranks; needed when `world_size` > 1."""
        self.model, self.tuning = model, tuning
        self.rank, self.world_size, self.reduce = rank, world_size, reduce
        self.flat = _flatten([p for p in model.parameters() if p.requires_grad])
        self.base = self.flat.detach().clone()
        self.begin_task(1)

    def begin_task(self, num_optimizer_steps: int) -> None:
        """A fresh optimizer and a fresh cosine over the task's `num_optimizer_steps`."""
        self.num_steps, self.steps_done = num_optimizer_steps, 0
        self.optimizer = torch.optim.AdamW([self.flat], lr=self.tuning.learning_rate, weight_decay=self.tuning.weight_decay, fused=True)

    def train_step(self, batch: Batch) -> float:
        """One optimizer step on the *global* batch, of which this rank computes its slice.

        Returns:
            Mean loss over the whole batch, nats per answer token.

        Raises:
            NonFiniteLossError: before any weight changed.
        """
        gradient = self.flat.grad
        assert gradient is not None
        gradient.zero_()
        rows = slice(self.rank, None, self.world_size)
        mine = Batch(batch.input_ids[rows], batch.labels[rows])
        # The divisor is the global one, so that summing the ranks' gradients is the one-worker gradient.
        loss = self._token_losses(mine)[0].sum() / batch.num_answer_tokens
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.detach()
        if self.reduce is not None:
            self.reduce(gradient)
            self.reduce(value)
        if not math.isfinite(value.item()):
            remedy = "lower the learning rate and give the run another name"
            raise NonFiniteLossError(f"loss became {value.item()} at optimizer step {self.steps_done} of the task; {remedy}")
        norm = torch.linalg.vector_norm(gradient)
        gradient.mul_((self.tuning.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.param_groups[0]["lr"] = self.tuning.learning_rate * self._schedule()
        self.optimizer.step()
        self.steps_done += 1
        return value.item()

    def losses(self, probes: Mapping[str, EncodedSplit]) -> dict[str, float]:
        """Mean loss of every probe, nats per answer token; all probes go through the model together."""
        return {name: value[0] for name, value in self._evaluate(probes).items()}

    def accuracies(self, probes: Mapping[str, EncodedSplit]) -> dict[str, Tensor]:
        """Whether each row's whole answer would be generated greedily, bool `[num_rows]` per probe.

        Teacher-forced: the argmax is right at every answer position exactly if greedy decoding yields the answer.
        """
        return {name: value[1] for name, value in self._evaluate(probes).items()}

    def restore_base(self) -> None:
        """Back to the weights the learner was built with; no file is read."""
        with torch.no_grad():
            self.flat.copy_(self.base)
        self.begin_task(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, moments and the place in the schedule."""
        state = self.optimizer.state.get(self.flat, {})
        tensors = {"flat": self.flat.detach(), "progress": torch.tensor([self.num_steps, self.steps_done])}
        return tensors | {f"optimizer.{name}": value for name, value in state.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        num_steps, steps_done = tensors["progress"].tolist()
        with torch.no_grad():
            self.flat.copy_(tensors["flat"])
        self.begin_task(num_steps)
        self.steps_done = steps_done
        moments = {
            name.removeprefix("optimizer."): value.to(self.flat.device, copy=True) for name, value in tensors.items() if name.startswith("optimizer.")
        }
        if moments:
            self.optimizer.state[self.flat] = moments

    def _schedule(self) -> float:
        """Linear warm-up, then cosine to a tenth."""
        warmup = self.tuning.warmup_fraction * self.num_steps
        if self.steps_done < warmup:
            return (self.steps_done + 1) / (warmup + 1)
        progress = (self.steps_done - warmup) / max(self.num_steps - warmup, 1)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _token_losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss at each answer position, its row, and whether the argmax is right; logits are computed nowhere else."""
        input_ids, labels = batch.input_ids.to(self.flat.device), batch.labels.to(self.flat.device)
        states = self.model.hidden(input_ids)
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        scores, labels = self.model.logits(states[rows, columns]).float(), labels[rows, columns]
        return F.cross_entropy(scores, labels, reduction="none"), rows, scores.detach().argmax(-1) == labels

    @torch.no_grad()
    def _evaluate(self, probes: Mapping[str, EncodedSplit]) -> dict[str, tuple[float, Tensor]]:
        batch, owners = stack(list(probes.values()))
        totals, counts = torch.zeros(len(probes), dtype=torch.float64), torch.zeros(len(probes), dtype=torch.float64)
        exact = torch.ones(len(owners), dtype=torch.bool)
        for start in range(0, len(owners), EVALUATION_ROWS):
            part = slice(start, start + EVALUATION_ROWS)
            losses, rows, right = (values.cpu() for values in self._token_losses(Batch(batch.input_ids[part], batch.labels[part])))
            whose = owners[part][rows]
            totals.index_add_(0, whose, losses.double())
            counts += torch.bincount(whose, minlength=len(probes))
            exact[start + rows[~right]] = False
        means, rows_of = (totals / counts).tolist(), torch.split(exact, [len(probe) for probe in probes.values()])
        return {name: (means[i], rows_of[i]) for i, name in enumerate(probes)}


def _flatten(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """One leaf that holds all `parameters`, which become views of it; so do their gradients."""
    unique = list({id(p): p for p in parameters}.values())
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in unique]))
    flat.grad = torch.zeros_like(flat)
    offset = 0
    for parameter in unique:
        window = slice(offset, offset + parameter.numel())
        parameter.data = flat.data[window].view_as(parameter)
        parameter.grad = flat.grad[window].view_as(parameter)
        offset += parameter.numel()
    return flat
