"""What a run computes, counted and not timed: floating-point operations of a dense decoder.

    parameters × tokens → FLOPs → cost in random-replay target runs

The usual estimate (Kaplan et al. 2020): 2 operations per parameter and token forward, twice that backward. Every parameter counts, embeddings
included. With adapters it is an upper bound, since frozen weights need no gradient of their own.
"""

from __future__ import annotations


def forward_flops(num_parameters: int, num_tokens: int) -> int:
    """Operations to read `num_tokens` tokens once, as validation does: 2·N·D.

    >>> forward_flops(1_000, 10)
    20000
    """
    return 2 * num_parameters * num_tokens


def training_flops(num_parameters: int, num_tokens: int) -> int:
    """Operations to train on `num_tokens` tokens, forward and backward: 6·N·D.

    >>> training_flops(1_000, 10)
    60000
    """
    return 6 * num_parameters * num_tokens
