"""What a model computes, counted from its shapes and not timed: floating-point operations of matrix products, forward and backward.

    model → ModelShape;   rows, padded length, scored positions → FLOPs

What is counted is what padded rows take: padding too, attention over the whole square of positions, the output layer at scored positions
alone. `LeanLlama` leaves padding out of its products, so where rows differ in length it computes less than is counted. Lookups, norms and
activations are free. `torch.utils.flop_counter` counts the same to the last operation where attention runs as plain products. Two fused kernels
it counts otherwise: the CPU's not at all, and CUDA's backward as 2.5 and not 2 times forward (scores computed again).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModelShape:
    """As much of a causal language model as its cost depends on. A mixture of experts counts as if all its experts were asked."""

    body: int
    """Weights that every position is multiplied with."""
    head: int
    """Weights of the output layer, hidden size × vocabulary; only scored positions are multiplied with them."""
    attention: int
    """Sum over the layers of heads × head size."""
    frozen_body: int = 0
    """Of `body`: weights that are not tuned, and so need no gradient of their own."""
    frozen_head: int = 0
    tail: int = 0
    """Weights of the last layer that only scored positions are multiplied with (`LeanLlama`)."""
    tail_attention: int = 0
    """Heads × head size of a last layer whose queries are the scored positions alone; not in `attention`."""

    @classmethod
    def of(cls, matrices: Iterable[Tensor], head: Tensor, attention: int) -> ModelShape:
        """Args: `matrices` are the weights of the body, lookups excluded; `head` may be tied to one."""
        sizes = [(matrix.numel(), matrix.requires_grad) for matrix in matrices]
        frozen = sum(size for size, tuned in sizes if not tuned)
        return cls(sum(size for size, _ in sizes), head.numel(), attention, frozen, 0 if head.requires_grad else head.numel())

    def forward_flops(self, shape: Sequence[int], num_scored: int) -> int:
        """Operations to read padded rows and to score every token of the vocabulary at some positions.

        Args:
            shape: of the token ids, `[num_rows, length]`.
            num_scored: positions that logits are computed at (`Batch.num_scored`).

        >>> ModelShape(body=100, head=50, attention=8).forward_flops([2, 3], num_scored=4)
        2176
        """
        num_rows, length = shape
        products = self.body * num_rows * length + (self.tail + self.head) * num_scored
        return 2 * products + 4 * (self.attention * num_rows * length + self.tail_attention * num_scored) * length

    def training_flops(self, shape: Sequence[int], num_scored: int) -> int:
        """Operations of forward and backward: three times forward, less the gradients of frozen weights.

        With a frozen embedding it is an upper bound: the lowest layer's input then needs no gradient either.

        >>> ModelShape(body=100, head=50, attention=8).training_flops([2, 3], num_scored=4) / 2176
        3.0
        """
        num_rows, length = shape
        return 3 * self.forward_flops(shape, num_scored) - 2 * (self.frozen_body * num_rows * length + self.frozen_head * num_scored)
