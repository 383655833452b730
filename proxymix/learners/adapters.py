"""Low-rank adapters by peft: where they go, and the weights they amount to.

LoraConfig + model → module names → peft → adapters beside frozen weights → merged_state → an ordinary checkpoint
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from proxymix.errors import UserError

if TYPE_CHECKING:
    from proxymix.config import LoraConfig

Copy = TypeVar("Copy")


def with_adapters(model: Any, lora: LoraConfig) -> Any:
    """`model` of transformers with fresh adapters, its own weights frozen; adapters are kept in fp32 whatever the model is in.

    Raises:
        UserError: a name matches no module, or an embedding that is tied to the output layer.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    names = module_names(model, lora.modules)
    _check_matches(model, names)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    outer = {name for name, module in model.named_modules() if module in (model.get_input_embeddings(), model.get_output_embeddings())}
    if tied and any(name.split(".")[-1] in names for name in outer):
        raise UserError(f"target.lora.modules: must not name embeddings that the model ties to its output layer, got {names}; remove them")
    try:
        return get_peft_model(model, PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names, task_type="CAUSAL_LM"))
    except ValueError as error:
        raise UserError(f"target.lora.modules: must name modules of the model, got {names}: {error}") from error


def module_names(model: Any, modules: str | Sequence[str]) -> list[str]:
    """Ends of the names of the modules that get adapters, sorted for `qv` and `qkvo` (see `LoraConfig`)."""
    if modules == "qkvo":
        attention = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
        return sorted({name for module in attention for name, part in module.named_children() if _is_matrix(part)})
    if modules == "qv":
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL

        usual = USUAL.get(model.config.model_type, ())
        # Some lists name more than that, and some are patterns.
        queries_and_values = [] if isinstance(usual, str) else [name for name in usual if name.startswith(("q", "v", "c_attn", "Wqkv"))]
        return queries_and_values or ["q_proj", "v_proj"]
    return list(modules)


@torch.no_grad()
def merged_state(base: Any, copied: Callable[[Tensor], Copy]) -> dict[str, Copy]:
    """What `copied` makes of every weight, adapters added where there are some, under the names they have without adapters.

    Computed beside the model: peft's own merging in place and back is not exact, so every checkpoint would move the frozen weights. One matrix is
    merged at a time, so there is room beside the model for the largest of them and no more. What is tied is copied once.
    """
    state = {name: value for name, value in base.state_dict(keep_vars=True).items() if ".lora_" not in name}
    # By identity of the weights below the adapters: they stay, so nothing else can have theirs meanwhile.
    adapted = {id(module.get_base_layer().weight): module for module in base.modules() if hasattr(module, "get_delta_weight")}
    copies: dict[int, Copy] = {}
    for value in state.values():
        if id(value) not in copies:
            copies[id(value)] = copied(_merged(adapted[id(value)]) if id(value) in adapted else value)
    return {name.replace(".base_layer.", "."): copies[id(value)] for name, value in state.items()}


def _merged(layer: Any) -> Tensor:
    """The weight of a layer of peft's, its adapters added."""
    weight = layer.get_base_layer().weight
    deltas = [layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters]
    return torch.stack([weight.float(), *deltas]).sum(0).to(weight.dtype)


def _check_matches(model: Any, names: Sequence[str]) -> None:
    known = {name.rpartition(".")[2]: None for name, module in model.named_modules() if _is_matrix(module) or isinstance(module, nn.Embedding)}
    paths = [name for name, _ in model.named_modules()]
    lost = [name for name in names if not any(path == name or path.endswith(f".{name}") for path in paths)]
    if lost or not names:
        raise UserError(
            f"target.lora.modules: must name modules of the model, got {lost or list(names)}, which match nothing; it has {', '.join(known)}"
        )


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's linear layer.
