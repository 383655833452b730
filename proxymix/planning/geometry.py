"""The shape of a model that need not be at hand: built by transformers and peft without memory for its weights, so that every count is exact.

ModelConfig → config.json of its folder, of the hub's local copy, or `model.geometry` → a model on the meta device → Shape
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from proxymix.errors import UserError
from proxymix.learners.adapters import with_adapters
from proxymix.learners.pretraining import build_tokenizer, llama_config
from proxymix.learners.published import published_config, reference

if TYPE_CHECKING:
    from proxymix.config import Config, LoraConfig, ModelConfig


@dataclass(frozen=True)
class Shape:
    """As much of a model as its memory depends on."""

    num_parameters: int
    """Tied weights once, adapters included."""
    num_tuned: int
    """Of them, what is tuned."""
    weight_bytes: int
    tuned_bytes: int
    """Of the weights that are tuned, and so of their gradients."""
    num_tuned_tensors: int
    layer_bytes: int
    """Weights of one layer, the largest: what FSDP2 brings together at a time."""
    hidden: int
    layers: int
    query_width: int
    """Heads × head size."""
    key_width: int
    """Key-value heads × head size."""
    inner: int
    """Width of the feed-forward part."""
    gated: bool
    """Whether that part multiplies two projections."""
    vocabulary: int


def architecture(config: Config, model: ModelConfig) -> Any:
    """The configuration of transformers that `model` has; nothing is fetched from a network.

    Raises:
        UserError: neither the model nor `geometry` is here.
    """
    from transformers import AutoConfig

    if model.preset:
        words = config.model_copy(update={"pretraining": config.pretraining.model_copy(update={"tokenizer": "words"})})
        values = llama_config(model.preset, build_tokenizer(words, ()), config.tuning.max_length)
        if config.pretraining.tokenizer == "bpe":
            values["vocab_size"] = config.pretraining.vocabulary_size
        return AutoConfig.for_model(**values)
    try:
        return published_config(reference(model), local_files_only=True)
    except UserError as error:
        if model.geometry is None:
            raise UserError(
                f"model: the shape of {reference(model)!r} is not known here ({str(error.__cause__).splitlines()[0]}); "
                "give model.geometry as its config.json has it, or download the model"
            ) from error
    try:
        return AutoConfig.for_model(**model.geometry)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"model.geometry: must be what a config.json of transformers holds, model_type included, got {model.geometry}") from error


def shape_of(architecture: Any, *, lora: LoraConfig | None = None, precision: str = "fp32") -> Shape:
    """The shape of a model as it is tuned: what is frozen is kept in `precision`, what is tuned in fp32 (see `TransformersModel`)."""
    from transformers import AutoModelForCausalLM

    frozen = torch.bfloat16 if precision == "bf16" else torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(architecture, dtype=frozen if lora else torch.float32)
        model = with_adapters(model, lora) if lora else model
    parameters = list(model.parameters())
    tuned = [parameter for parameter in parameters if parameter.requires_grad]
    values = architecture.get_text_config()
    heads = values.num_attention_heads
    head_size = getattr(values, "head_dim", None) or values.hidden_size // heads
    return Shape(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_tuned=sum(parameter.numel() for parameter in tuned),
        weight_bytes=sum(parameter.nbytes for parameter in parameters),
        tuned_bytes=sum(parameter.nbytes for parameter in tuned),
        num_tuned_tensors=len(tuned),
        layer_bytes=max(sum(parameter.nbytes for parameter in layer.parameters()) for layer in model.modules() if _is_layer(layer)),
        hidden=values.hidden_size,
        layers=values.num_hidden_layers,
        query_width=heads * head_size,
        key_width=(getattr(values, "num_key_value_heads", None) or heads) * head_size,
        inner=values.intermediate_size,
        gated=any(name.endswith("gate_proj") for name, _ in model.named_modules()),
        vocabulary=values.vocab_size,
    )


def _is_layer(module: torch.nn.Module) -> bool:
    from transformers.modeling_layers import GradientCheckpointingLayer  # What transformers makes the layers of every decoder of.

    return isinstance(module, GradientCheckpointingLayer)
