"""A device that only pretends: its tensors hold a CPU tensor each, and refuse to meet one that was not moved to them.

What runs here puts everything where it belongs, as it must with CUDA; what a GPU computes is not tried. The device goes by the name of `meta`.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)
"""What may have arguments in both places."""


class WrongPlaceError(RuntimeError):
    pass


class Elsewhere(Tensor):
    @staticmethod
    def __new__(cls, held):
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return Tensor._make_wrapper_subclass(cls, held.shape, device=ELSEWHERE, **shape)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        self.held = other.held
        Tensor.data.__set__(self, other)  # Its strides.

    def tolist(self):
        return self.held.tolist()


class Machine(TorchDispatchMode):
    """With the device in it, for as long as the context is open."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def computed(func, args, kwargs):
    if func is aten._fused_sdp_choice.default:
        return 0  # Plain products: the fused kernels are chosen by the name of the device.
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    # As with CUDA, one number may stay behind.
    if there and func not in MOVES and any(tensor.ndim for tensor in tensors if not isinstance(tensor, Elsewhere)):
        raise WrongPlaceError(f"{func} on tensors of two devices")
    goes_there = bool(there)
    if kwargs.get("device") is not None:
        goes_there = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func is aten._to_copy.default:  # Between devices it is always a copy.
        kwargs.pop("device", None)
    held = {id(tensor.held): tensor for tensor in there}
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func is aten.copy_.default and not isinstance(args[0], Elsewhere):
        return result

    def placed(leaf):
        if not (goes_there and isinstance(leaf, Tensor)):
            return leaf
        return held[id(leaf)] if id(leaf) in held else Elsewhere(leaf)

    return tree_map(placed, result)


def _held(leaf):
    return leaf.held if isinstance(leaf, Elsewhere) else leaf
