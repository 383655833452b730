"""One small interface over causal language models: states, logits where asked, save as a Hugging Face folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from proxymix.config import LoraConfig
from proxymix.errors import UserError
from proxymix.learners.decoder import LeanLlama

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


class LanguageModel(Protocol):
    """What a learner needs of a model."""

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Final states, `[batch, length, width]`, of right-padded rows."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """`[num_positions, width]` to `[num_positions, vocabulary]`."""
        ...

    def parameters(self) -> Any:
        """Every parameter; the ones to tune have `requires_grad`."""
        ...

    def to(self, device: torch.device) -> Any:
        """The model on `device`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes config and safetensors; adapters are merged in."""
        ...


class TransformersModel(nn.Module):
    """Any causal language model of transformers, optionally with LoRA adapters."""

    def __init__(self, folder: str, lora: LoraConfig | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Args: `folder` is a local folder or a hub name."""
        super().__init__()
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError) as error:
            raise UserError(f"model: transformers cannot load {folder!r}: {error}") from error
        self.model = _with_lora(model, lora) if lora else model
        self.lora = lora

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Final states; right padding needs no mask under causal attention."""
        causal = self.model.get_base_model() if self.lora else self.model
        states: Tensor = getattr(causal, causal.base_model_prefix)(input_ids=input_ids, use_cache=False).last_hidden_state
        return states

    def logits(self, states: Tensor) -> Tensor:
        """The output embeddings' scores."""
        scores: Tensor = self.model.get_output_embeddings()(states)
        return scores

    def save(self, folder: Path) -> None:
        """The full model in its own architecture, adapters merged into a copy of the weights."""
        if not self.lora:
            self.model.save_pretrained(folder)
            return
        self.model.merge_adapter()
        try:
            base = self.model.get_base_model()
            prefix, adapter = ".base_layer", "lora_"
            merged = {name.replace(prefix, ""): value for name, value in base.state_dict().items() if adapter not in name}
            base.save_pretrained(folder, state_dict=merged)
        finally:
            self.model.unmerge_adapter()


def _with_lora(model: Any, lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    try:
        return get_peft_model(model, PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.modules), task_type="CAUSAL_LM"))
    except ValueError as error:
        raise UserError(f"target.lora.modules: must name modules of the model, got {lora.modules}: {error}") from error


def load_model(folder: str | Path, implementation: str, lora: LoraConfig | None = None, precision: str = "fp32") -> LanguageModel:
    """The model in `folder`, ready to be tuned."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if implementation == "lean":
        return LeanLlama.load(Path(folder)).to(dtype)
    return TransformersModel(str(folder), lora, dtype)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer beside a model, with a pad token.

    Raises:
        UserError: there is none, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"model: no tokenizer can be loaded from {str(folder)!r}: {error}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"model: the tokenizer in {str(folder)!r} must have an eos token; add one to its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # Padding is never attended to nor scored, so any token does.
    return tokenizer


def save_model(model: LanguageModel, base_folder: Path, folder: Path) -> None:
    """A complete Hugging Face folder: `model` with the tokenizer that stands in `base_folder`."""
    model.save(folder)
    for name in TOKENIZER_FILES:
        if (base_folder / name).exists():
            shutil.copy(base_folder / name, folder / name)
