"""A language model of any size and architecture being tuned: in portions, packed, in mixed precision, over several workers.

    global batch → this worker's portions → loss of each row → gradients add up, over workers too (`parallel.py`) → clip → AdamW

`Learner` holds small models in one flat tensor, several at a time; here parameters stay as transformers has them. Both are the same step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from proxymix.data.encoding import IGNORED, Batch, EncodedSplit, stack
from proxymix.data.portions import Portion, portions
from proxymix.errors import NonFiniteLossError, UserError
from proxymix.learners.learner import EVALUATION_ROWS, token_losses
from proxymix.learners.models import TransformersModel
from proxymix.learners.parallel import Strategy, forget_whole, gradients_stay, put, spread, whole
from proxymix.learners.schedule import rate_factor

if TYPE_CHECKING:
    from proxymix.tuning_config import StepConfig, TuningConfig

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
APART = 0.05
"""Most that scores of a row may differ in a pack, relative to the largest: more than rounding in bf16, less than another row's influence."""


class LargeLearner:
    """Tunes one model of transformers; implements `ResumableLearner`."""

    def __init__(
        self, model: TransformersModel, tuning: TuningConfig, settings: StepConfig, workers: DeviceMesh | None = None, strategy: Strategy = "ddp"
    ) -> None:
        """Stands at `model`.

        Args:
            model: what is tuned of it requires gradients; on its device, or anywhere where `workers` share its parts.
            tuning: the schedule.
            settings: precision, portions, packs, gradient checkpointing.
            workers: that tune together, `[num_workers]`; None: this one alone.
            strategy: what each of them holds.

        Raises:
            UserError: packs are asked for, and the model does not keep rows of a pack apart.
        """
        self.model, self.tuning, self.settings, self.workers = model, tuning, settings, workers
        self.rank, self.world_size = (0, 1) if workers is None else (workers.get_local_rank(), workers.size())
        self.shape = model.shape
        self.network = spread(model, strategy, workers)
        self.parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.device = next(iter(self.parameters.values())).device
        if settings.gradient_checkpointing:
            model.checkpoint_gradients()
        if settings.pack_tokens is not None:
            self._check_rows_stay_apart()
        # Beside the accelerator, which has better uses for its memory.
        self.base = {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}
        self.begin_task(1)

    def begin_task(self, num_optimizer_steps: int) -> None:
        """A fresh optimizer and a fresh cosine over the task's `num_optimizer_steps`."""
        self.num_steps, self.steps_done = num_optimizer_steps, 0
        parameters = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=self.tuning.weight_decay, fused=True)
        for parameter in parameters:  # As AdamW does at its first step; now, so that the state is whole at any time.
            zeros = (torch.zeros_like(parameter, requires_grad=False) for _ in range(2))
            moments = (torch.zeros((), dtype=torch.float32, device=self.device), *zeros)
            self.optimizer.state[parameter] = dict(zip(MOMENTS, moments, strict=True))

    def train_steps(self, batches: Sequence[Batch]) -> list[float]:
        """One optimizer step on the *global* batch, of which this worker computes its share.

        Returns:
            Its mean loss alone, nats per answer token.

        Raises:
            NonFiniteLossError: before any weight changed.
        """
        (batch,) = batches
        num_answer_tokens = batch.num_answer_tokens
        losses = torch.zeros(len(batch.labels), device=self.device)
        self.optimizer.zero_grad()
        shares = self._portions(batch, self.settings.micro_batch_size)
        for index, portion in enumerate(shares):
            with gradients_stay(self.network, index < len(shares) - 1):
                scores, labels, rows = self._scores(portion, self.network)
                part = torch.zeros_like(losses).index_add(0, rows, token_losses(scores, labels))
                # The divisor is the global one, so that gradients of portions add up to the batch's; those of workers are averaged.
                torch.autograd.backward(part.sum() * self.world_size / num_answer_tokens)
            losses += part.detach()
        self._sum_over_workers(losses)
        norm = whole(get_total_norm([parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]))
        clip_grads_with_norm_(self.parameters.values(), self.tuning.max_grad_norm, norm)
        loss, size = torch.stack([losses.sum() / num_answer_tokens, norm]).tolist()
        if not (math.isfinite(loss) and math.isfinite(size)):
            raise self._fault(loss, size, losses)
        rate = self.tuning.learning_rate * rate_factor(self.steps_done, self.num_steps, self.tuning.warmup_fraction)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        self.steps_done += 1
        return [loss]

    def losses_of_all(self, probes: Mapping[str, EncodedSplit]) -> list[dict[str, float]]:
        """Mean loss of every probe, nats per answer token; workers share the rows."""
        read = self._evaluate(probes)
        counts = {name: int((probe.labels != IGNORED).sum()) for name, probe in probes.items()}
        return [{name: float(losses.sum()) / counts[name] for name, (losses, _) in read.items()}]

    def accuracies_of_all(self, probes: Mapping[str, EncodedSplit]) -> list[dict[str, Tensor]]:
        """Whether each row's whole answer would be generated greedily, bool `[num_rows]` per probe."""
        return [{name: wrong == 0 for name, (_, wrong) in self._evaluate(probes).items()}]

    def restore_base(self) -> None:
        """Back to the weights the learner was built with; no file is read."""
        forget_whole(self.network)
        for name, parameter in self.parameters.items():
            put(parameter, self.base[name])
        self.begin_task(1)

    def state_dict(self) -> dict[str, Tensor]:
        """Tuned weights, moments and the place in the schedule; spread out as the model is."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"optimizer.{name}.{moment}": self.optimizer.state[parameter][moment] for moment in MOMENTS}
        return tensors | {"progress": torch.tensor([self.num_steps, self.steps_done])}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        num_steps, steps_done = tensors["progress"].tolist()
        self.begin_task(num_steps)
        self.steps_done = steps_done
        forget_whole(self.network)
        for name, parameter in self.parameters.items():  # One tensor at a time: they may not fit side by side.
            put(parameter, tensors[f"weights.{name}"])
            for moment in MOMENTS:
                put(self.optimizer.state[parameter][moment], tensors[f"optimizer.{name}.{moment}"])

    def _portions(self, batch: Batch, lines_at_once: int | None) -> list[Portion]:
        packs = self.settings.pack_tokens
        return portions(batch, rank=self.rank, world_size=self.world_size, lines_at_once=lines_at_once, pack_tokens=packs)

    def _scores(self, portion: Portion, network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Of every answer token of a portion, whichever its row: scores `[num_tokens, vocabulary]`, the token, and its row of the batch."""
        scored = portion.labels != IGNORED
        labels, rows = (values[scored].to(self.device) for values in (portion.labels, portion.rows))
        positions = None if portion.positions is None else portion.positions.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            scores = network(portion.input_ids.to(self.device), scored.to(self.device), positions)
        return scores.float(), labels, rows

    @torch.no_grad()
    def _evaluate(self, probes: Mapping[str, EncodedSplit]) -> dict[str, tuple[Tensor, Tensor]]:
        """Of every probe's rows, on the CPU: summed losses, nats, and how many answer tokens greedy decoding would miss, each `[num_rows]`."""
        batch, _ = stack(list(probes.values()))
        totals = torch.zeros(2, len(batch.labels), device=self.device)
        # No more at a time than a step has, so no more memory.
        at_once = self.settings.micro_batch_size or min(EVALUATION_ROWS, math.ceil(self.tuning.batch_size / self.world_size))
        for portion in self._portions(batch, at_once):
            scores, labels, rows = self._scores(portion, self.model)
            totals.index_add_(1, rows, torch.stack([token_losses(scores, labels), (scores.argmax(-1) != labels).float()]))
        self._sum_over_workers(totals)
        parts = torch.split(totals.double().cpu(), [len(probe) for probe in probes.values()], dim=1)
        return {name: (part[0], part[1]) for name, part in zip(probes, parts, strict=True)}

    def _sum_over_workers(self, tensor: Tensor) -> None:
        """In place."""
        if self.workers is not None:
            dist.all_reduce(tensor, group=self.workers.get_group())

    def _fault(self, loss: float, norm: float, losses: Tensor) -> NonFiniteLossError:
        wrong = (~losses.isfinite()).nonzero().flatten().tolist()
        return NonFiniteLossError.of(loss, norm, self.steps_done, row=wrong[0] if wrong else None)

    @torch.no_grad()
    def _check_rows_stay_apart(self) -> None:
        """Scores of a short row in a pack against the row alone: what an architecture does with positions is measured and not looked up."""
        name = type(self.model.causal).__name__
        if "position_ids" not in inspect.signature(self.model.causal.forward).parameters:
            raise UserError(f"target.pack_tokens: must be null for this model ({name}), which takes no position_ids to tell rows by; set it to null")
        row = torch.arange(4)
        alone = portions(Batch(row[None], row[None]))[0]
        pack = portions(Batch(torch.stack([row + 3, row]), row.repeat(2, 1)), pack_tokens=8)[0]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            scores = [self.model(p.input_ids.to(self.device), (p.labels >= 0).to(self.device), _on(p.positions, self.device)) for p in (alone, pack)]
        difference = float((scores[1][-len(row) :] - scores[0]).abs().max())
        if difference > APART * float(scores[0].abs().max()):
            raise UserError(
                f"pack_tokens: must be null for this model ({name}), which does not keep the rows of a pack apart: "
                f"scores differ by {difference:.2g}; set it to null"
            )


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
