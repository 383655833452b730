"""Where a model is tuned: the CPU, or the GPU that this process was given."""

from __future__ import annotations

import torch

from proxymix.errors import UserError


def tuning_device(use_gpu: bool, key: str, off: str) -> torch.device:
    """The device to tune on.

    Args:
        use_gpu: whether a GPU is to be used.
        key: of the config, that says so.
        off: its value that does without.

    Raises:
        UserError: a GPU is to be used and torch sees none.
    """
    if use_gpu and not torch.cuda.is_available():
        raise UserError(
            f"{key}: needs a GPU that torch sees on every node that tunes, got torch {torch.__version__} without one; "
            f"install with `make setup REQUIREMENTS=gpu`, or set it to {off}"
        )
    return torch.device("cuda" if use_gpu else "cpu")
