"""Rows without their padding: a decoder's norms and products then read tokens alone, and only attention sees padded rows.

lengths [replicas, rows] → Packing;   tokens [replicas, tokens, …] ⇄ padded rows [replicas · rows, length, …]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the tokens of padded rows stand when a replica's rows follow one another. Tokens and places are counted through all replicas."""

    starts: Tensor
    """The first token of each row, int64 `[replicas, rows, 1]`."""
    tokens: Tensor
    """Of each place in the padded rows its token, int64 `[replicas · rows · length]`; behind a row's end any, which causal attention does not see."""
    places: Tensor
    """Of each token its place in the padded rows, int64 `[replicas · tokens]`; 0 behind the last of a replica that has fewer than another."""
    length: int
    """Of the longest row."""

    @classmethod
    def of(cls, lengths: Tensor) -> Packing:
        """Args: `lengths` int64 `[replicas, rows]`, at least 1."""
        replicas, ends = len(lengths), lengths.cumsum(1)
        length, num_tokens = torch.stack([lengths.amax(), ends.amax()]).tolist()
        starts = (ends - lengths + torch.arange(replicas, device=lengths.device)[:, None] * num_tokens)[..., None]
        columns = torch.arange(length, device=lengths.device)
        tokens = (starts + columns).flatten()
        filled = (columns < lengths[..., None]).flatten().nonzero()[:, 0]
        places = torch.zeros(replicas * num_tokens, dtype=torch.int64, device=lengths.device)
        places[tokens[filled]] = filled
        return cls(starts, tokens.clamp_(max=len(places) - 1), places, length)

    def pad(self, states: Tensor) -> Tensor:
        """`[replicas, tokens, size]` to `[replicas · rows, length, size]`."""
        return states.flatten(0, 1).index_select(0, self.tokens).view(-1, self.length, states.shape[-1])

    def unpad(self, rows: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return rows.flatten(0, 1).index_select(0, self.places).view(len(self.starts), -1, rows.shape[-1])
