"""What can be found wrong with a run's models before anything has started, by their configurations alone.

Config → config.json of every model → window against tuning.max_length, names of target.lora.modules against what the architecture has
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from proxymix.config import PROXYMIX
from proxymix.learners.adapters import with_adapters
from proxymix.learners.models import check_reach
from proxymix.learners.published import published_config, reference
from proxymix.planning.geometry import architecture

if TYPE_CHECKING:
    from proxymix.config import Config, ModelConfig


def check_models(config: Config) -> None:
    """Makes sure that rows fit the models that the run will load, and that adapters find their places. No weight is read.

    Raises:
        UserError: of `check_reach` and `with_adapters`; or a model's configuration cannot be read.
    """

    def read(model: ModelConfig) -> Any:
        return architecture(config, model) if model.preset else published_config(reference(model))

    check_windows(config, read)
    if config.target.lora is not None:
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            with_adapters(AutoModelForCausalLM.from_config(read(config.target.model)), config.target.lora)


def check_windows(config: Config, read: Callable[[ModelConfig], Any]) -> None:
    """The part about rows; `read` gives a model's configuration of transformers. A proxy that no method asks for is not looked at."""
    for role in ("proxy", "target") if PROXYMIX in config.methods else ("target",):
        model = getattr(config, role).model
        check_reach(read(model), model.preset or reference(model), config.tuning.max_length)
