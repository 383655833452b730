"""What a model computes, counted from its shapes and not timed: floating-point operations of matrix products, forward and backward.

    model → ModelShape;   batch → BatchShape;   both → FLOPs

What is counted is what is computed: products of every padded place, or of tokens alone where a model leaves padding out (`LeanLlama`);
attention over the whole square of padded positions; the output layer at scored positions alone. Lookups, norms and activations are free.
`torch.utils.flop_counter` counts the same to the last operation where attention runs as plain products. Two fused kernels it counts otherwise:
the CPU's not at all, and CUDA's backward as 2.5 and not 2 times forward (scores computed again).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BatchShape:
    """As much of right-padded rows as their cost depends on."""

    num_rows: int
    length: int
    """Of every row, padding included."""
    num_tokens: int
    """Of all rows, padding excluded."""
    num_scored: int
    """Positions that logits are computed at: as many in every row as the longest answer has tokens."""


@dataclass(frozen=True)
class ModelShape:
    """As much of a causal language model as its cost depends on. A mixture of experts counts as if all its experts were asked."""

    body: int
    """Weights that every position is multiplied with, padding too unless `skips_padding`."""
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
    skips_padding: bool = False
    """Whether products of the body are computed for tokens alone."""

    @classmethod
    def of(cls, matrices: Iterable[Tensor], head: Tensor, attention: int) -> ModelShape:
        """Args: `matrices` are the weights of the body, lookups excluded; `head` may be tied to one."""
        sizes = [(matrix.numel(), matrix.requires_grad) for matrix in matrices]
        frozen = sum(size for size, tuned in sizes if not tuned)
        return cls(sum(size for size, _ in sizes), head.numel(), attention, frozen, 0 if head.requires_grad else head.numel())

    def forward_flops(self, batch: BatchShape) -> int:
        """Operations to read rows and to score every token of the vocabulary at some positions.

        >>> batch = BatchShape(num_rows=2, length=3, num_tokens=5, num_scored=4)
        >>> ModelShape(body=100, head=50, attention=8).forward_flops(batch)
        2176
        >>> ModelShape(body=100, head=50, attention=8, skips_padding=True).forward_flops(batch)
        1976
        """
        products = self.body * self._places(batch) + (self.tail + self.head) * batch.num_scored
        queries = self.attention * batch.num_rows * batch.length + self.tail_attention * batch.num_scored
        return 2 * products + 4 * queries * batch.length

    def training_flops(self, batch: BatchShape) -> int:
        """Operations of forward and backward: three times forward, less the gradients of frozen weights.

        With a frozen embedding it is an upper bound: the lowest layer's input then needs no gradient either.

        >>> ModelShape(body=100, head=50, attention=8).training_flops(BatchShape(2, 3, num_tokens=5, num_scored=4)) / 2176
        3.0
        """
        return 3 * self.forward_flops(batch) - 2 * (self.frozen_body * self._places(batch) + self.frozen_head * batch.num_scored)

    def _places(self, batch: BatchShape) -> int:
        """What the body's products are computed for."""
        return batch.num_tokens if self.skips_padding else batch.num_rows * batch.length
