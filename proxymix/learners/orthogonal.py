"""O-LoRA (Wang et al. 2023, arXiv 2310.14152): an adapter for every task, in directions that earlier adapters do not read.

    task begins → the adapter of the task before is frozen into the weights → a fresh one, kept orthogonal to all frozen ones

A learner and no mixture: it is tuned without replay. Frozen adapters act by their sum, so that sum stands in the layers' weights and a step
costs what it costs with one adapter. Only `transformers` models with LoRA can be tuned so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from proxymix.errors import UserError
from proxymix.learners.learner import Learner
from proxymix.learners.models import LanguageModel, TransformersModel

if TYPE_CHECKING:
    from proxymix.config import TuningConfig

PENALTY = 0.5
"""λ₁ of the original, for every task."""
ADAPTER = "default"
"""peft's name of the one adapter."""


class OrthogonalLearner(Learner):
    """Adds λ · Σ_i Σ_layers ‖A_i A_tᵀ‖² to the loss; A_i `[rank, inputs]` are the frozen tasks', A_t the current one's.

    The penalty's own operations (a product of two A per layer and frozen task) are not counted; the loss that is reported is without it.
    """

    def __init__(
        self,
        model: LanguageModel,
        tuning: TuningConfig,
        *,
        penalty: float = PENALTY,
        rank: int = 0,
        world_size: int = 1,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> None:
        """As a `Learner` of `model`, whose adapter is the first task's; `penalty` is λ ≥ 0.

        Raises:
            UserError: the model has no adapters, or adapters of other than linear layers.
        """
        self.penalty, self.steps_done = penalty, 0
        self.layers = _adapted_layers(model)
        self.base_weights = [layer.get_base_layer().weight.detach().clone() for layer in self.layers]
        self.frozen: list[list[tuple[Tensor, Tensor]]] = []
        """(A `[rank, inputs]`, B `[outputs, rank]`) of every finished task and layer."""
        super().__init__(model, tuning, rank=rank, world_size=world_size, reduce=reduce)

    def begin_task(self, num_optimizer_steps: int) -> None:
        """Freezes the adapter if it was tuned, and draws a fresh one; then as any learner."""
        if self.steps_done:
            self.frozen.append([(a.detach().clone(), b.detach().clone()) for a, b in map(_adapter, self.layers)])
            self._put_frozen_into_weights()
            self._draw_adapters()
        super().begin_task(num_optimizer_steps)

    def objective(self, losses: Tensor) -> Tensor:
        """The losses of this rank, and its part of the penalty."""
        total = super().objective(losses)
        for task in self.frozen:
            for (earlier, _), layer in zip(task, self.layers, strict=True):
                total = total + self.penalty / self.world_size * (earlier @ _adapter(layer)[0].T).square().sum()
        return total

    def restore_base(self) -> None:
        """Back to the weights and the adapter that the learner was built with."""
        self._stand_after([])
        super().restore_base()

    def state_dict(self) -> dict[str, Tensor]:
        """Of any learner, and the frozen adapters."""
        tensors = super().state_dict()
        for task, adapters in enumerate(self.frozen):
            for layer, (a, b) in enumerate(adapters):
                tensors |= {f"frozen.{task}.{layer}.a": a, f"frozen.{task}.{layer}.b": b}
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        num_layers = len(self.layers)
        num_tasks = sum(name.startswith("frozen.") for name in tensors) // (2 * num_layers)

        def pair(task: int, layer: int) -> tuple[Tensor, Tensor]:
            a, b = (tensors[f"frozen.{task}.{layer}.{part}"].to(self.flat.device, copy=True) for part in "ab")
            return a, b

        self._stand_after([[pair(task, layer) for layer in range(num_layers)] for task in range(num_tasks)])
        super().load_state_dict(tensors)

    def _stand_after(self, frozen: list[list[tuple[Tensor, Tensor]]]) -> None:
        """With these adapters frozen, and with nothing to freeze when the next task begins."""
        self.frozen, self.steps_done = frozen, 0
        self._put_frozen_into_weights()

    @torch.no_grad()
    def _put_frozen_into_weights(self) -> None:
        """Computed from the base every time, in fp32: nothing is rounded twice, and a resumed run has the same bits."""
        for index, (layer, base) in enumerate(zip(self.layers, self.base_weights, strict=True)):
            weight = base.float()
            for task in self.frozen:
                a, b = task[index]
                weight = weight + layer.scaling[ADAPTER] * (b.float() @ a.float())
            layer.get_base_layer().weight.copy_(weight)

    @torch.no_grad()
    def _draw_adapters(self) -> None:
        """As peft draws them, but seeded by the number of tasks: the same on every rank and after a resume."""
        generator = torch.Generator().manual_seed(len(self.frozen))
        for a, b in map(_adapter, self.layers):
            a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5), generator=generator))
            b.zero_()


def _adapter(layer: Any) -> tuple[Tensor, Tensor]:
    """A `[rank, inputs]` and B `[outputs, rank]` as they are now."""
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _adapted_layers(model: LanguageModel) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)] if isinstance(model, TransformersModel) else []
    if not layers or not all(isinstance(layer.get_base_layer(), nn.Linear) for layer in layers):
        found = sorted({type(layer.get_base_layer()).__name__ for layer in layers}) or "no adapters"
        raise UserError(f"target.lora: o_lora needs adapters of linear layers, got {found}; use implementation: transformers and name linear modules")
    return layers
