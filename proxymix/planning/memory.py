"""Memory of one device while proxies are tuned, while the target is tuned, and while it is scored.

Weights, gradients and optimizer are exact. Activations are an upper bound from the shapes of what autograd keeps with fused attention, every token
scored. What a driver and a caching allocator take on top is a reserve.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from proxymix.planning.geometry import Shape

if TYPE_CHECKING:
    from proxymix.config import Config
    from proxymix.tuning_config import StepConfig

GIB = 2**30
RESERVE_BYTES = 2 * GIB
"""Of the driver, kernels and libraries."""
FRAGMENTS = 0.1
"""Share of the activations that a caching allocator takes more."""
VLLM_SHARE = 0.9
"""Of a device, that vLLM uses unless told otherwise."""


@dataclass(frozen=True)
class TuningMemory:
    """Bytes on the device of each process that tunes."""

    weights: int
    """The copy that a small model goes back to included; a large one's is beside the device."""
    gradients: int
    optimizer: int
    """Two moments in the precision of what is tuned, and a count of steps for every tensor."""
    activations: int
    exchange: int
    """What stands beside the worker's own while workers exchange (gradients, or whole layers), and low-precision copies of what is tuned."""
    reserve: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class ScoringMemory:
    """Bytes on each device of an evaluation actor."""

    weights: int
    cache_per_row: int
    """Keys and values of one row at its longest."""
    rows_at_once: int
    """Rows whose cache fits beside the weights; 0: none."""


def tuning_memory(config: Config, shape: Shape) -> TuningMemory:
    """Of one worker that tunes the target: all of the model (`ddp`), or its part and the layers that are whole for a moment (`fsdp`)."""
    target = config.target
    workers = target.parallelism.num_workers
    share = math.ceil(config.tuning.batch_size / workers)
    activations = activation_bytes(target, shape, share, config.tuning.max_length, adapters=target.lora is not None)
    exchange = shape.num_tuned * 2 if target.precision == "bf16" else 0
    parts = 1
    if target.parallelism.strategy == "fsdp" and workers > 1:
        parts = workers
        outside = shape.weight_bytes - shape.layers * shape.layer_bytes
        exchange += 2 * (outside + 2 * shape.layer_bytes)  # This layer and the next, what is in no layer; and as much again for gradients.
    elif workers > 1:
        exchange += shape.tuned_bytes
    return TuningMemory(
        weights=math.ceil(shape.weight_bytes / parts),
        gradients=math.ceil(shape.tuned_bytes / parts),
        optimizer=math.ceil(2 * shape.tuned_bytes / parts) + 4 * shape.num_tuned_tensors,
        activations=activations,
        exchange=exchange,
        reserve=(RESERVE_BYTES if target.parallelism.use_gpu else 0) + int(FRAGMENTS * activations),
    )


def proxy_memory(config: Config, shape: Shape) -> TuningMemory:
    """Of one process that tunes proxies: one of transformers in portions, or `group_size` lean ones side by side, each with a batch of its own."""
    proxy, tuning, replicas = config.proxy, config.tuning, config.group_size
    lean = proxy.model.implementation == "lean"
    activations = activation_bytes(proxy, shape, replicas * tuning.batch_size, tuning.max_length)
    size = 2 if lean and proxy.precision == "bf16" else 4
    tuned = replicas * size * shape.num_parameters
    return TuningMemory(
        weights=tuned * (2 if lean else 1),
        gradients=tuned * (2 if lean else 1),  # Part by part, then in one tensor.
        optimizer=2 * tuned + 4 * (1 if lean else shape.num_tuned_tensors),
        activations=activations,
        exchange=2 * shape.num_parameters if proxy.precision == "bf16" and not lean else 0,
        reserve=(RESERVE_BYTES if proxy.use_gpu else 0) + int(FRAGMENTS * activations),
    )


def activation_bytes(step: StepConfig, shape: Shape, rows: int, max_length: int, *, adapters: bool = False) -> int:
    """At most what one forward and backward pass of a portion keeps.

    Args:
        step: how a step is cut up.
        shape: of the model.
        rows: that a process computes of a step; a portion is all of them, or `micro_batch_size`.
        max_length: tokens of the longest.
        adapters: whether it has any.
    """
    tokens = (step.micro_batch_size or rows) * (step.pack_tokens or max_length)
    size = 2 if step.precision == "bf16" else 4
    norms = 2 * (4 + size) * shape.hidden  # Norms work in fp32 whatever goes in.
    attention = size * (3 * shape.query_width + 4 * shape.key_width)  # Before and after rotation; and the output.
    inner = size * shape.inner * (4 if shape.gated else 3)
    layer = tokens * (norms + (4 * shape.hidden if adapters else 0) + attention + inner)
    kept = shape.layers * size * shape.hidden * tokens + layer if step.gradient_checkpointing else shape.layers * layer
    # Scores as the model gives them, in fp32, their logarithms and their gradient.
    return kept + tokens * shape.vocabulary * (size + 3 * 4)


def scoring_memory(config: Config, shape: Shape, device_bytes: float) -> ScoringMemory:
    """Of one actor with `evaluation.tensor_parallel` devices of `device_bytes`, among which weights and heads are shared out.

    Args:
        config: of the run.
        shape: of the target without adapters, in the precision it is saved in.
        device_bytes: of one accelerator.
    """
    size = 2 if config.target.precision == "bf16" else 4
    parts = config.evaluation.tensor_parallel
    longest = config.tuning.max_length + config.evaluation.max_new_tokens
    per_row = math.ceil(2 * shape.layers * shape.key_width * size * longest / parts)
    weights = math.ceil(size * shape.num_parameters / parts)
    free = VLLM_SHARE * device_bytes - weights - RESERVE_BYTES
    return ScoringMemory(weights, per_row, max(0, int(free // per_row)))
