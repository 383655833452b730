"""One model on several workers: all of it on each (DDP), or a part on each (FSDP2).

    model + workers → spread → what to call instead of the model; after `backward` every worker has the sum of all gradients, or its part of it

Which worker computes what of a batch is not decided here (`data/portions.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Strategy = Literal["ddp", "fsdp"]


def spread(model: nn.Module, strategy: Strategy, workers: DeviceMesh | None) -> nn.Module:
    """What to call instead of `model` so that gradients become the *mean* of the workers'.

    Args:
        model: equal on all workers. With `ddp` on its device; with `fsdp` anywhere: layer by layer, its parts go to the workers' devices.
        strategy: how.
        workers: `[num_workers]`, all of which call this; None: there is one.
    """
    if workers is None:
        return model
    if strategy == "ddp":
        return DistributedDataParallel(model, process_group=workers.get_group())
    from transformers.modeling_layers import GradientCheckpointingLayer  # What transformers makes the layers of every decoder of.

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=workers)
    fully_shard(model, mesh=workers)
    return model


@contextmanager
def gradients_stay(network: nn.Module, stay: bool) -> Iterator[None]:
    """Within it, and where they may `stay`, gradients add up on each worker and are not exchanged yet.

    Only whole gradients can: those of a spread out model would take the memory that it was spread out to save.
    """
    if stay and isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, which may be spread out; then every worker must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def forget_whole(network: nn.Module) -> None:
    """Whole weights that FSDP2 still holds from reading go: it would use them once more, whatever is `put` into the parts."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def num_parts(tensor: Tensor) -> int:
    """Workers that `tensor` is spread out over; 1: it is whole on each."""
    return tensor.device_mesh.size() if isinstance(tensor, DTensor) else 1


def part(tensor: Tensor) -> Tensor:
    """The part of `tensor` that is on this worker; all parts follow each other along the first dimension, in the order of the workers."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def put(target: Tensor, source: Tensor) -> None:
    """Copies `source`, whole or spread out as `target` is, into `target`."""
    if isinstance(target, DTensor) and not isinstance(source, DTensor):
        # Every worker has the source; nothing needs to be sent.
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)
