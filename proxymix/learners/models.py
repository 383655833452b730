"""One small interface over causal language models: states, logits where asked, save as a Hugging Face folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from proxymix.cost import ModelShape
from proxymix.data.chat import PLAIN_TEMPLATE
from proxymix.errors import UserError
from proxymix.learners.adapters import merged_state, with_adapters
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.parallel import whole
from proxymix.learners.published import Published, published_config, unreadable

if TYPE_CHECKING:  # Else no pydantic is needed here: the GPU benchmarks run where there is none.
    from proxymix.config import LoraConfig

logger = logging.getLogger(__name__)


class LanguageModel(Protocol):
    """What a learner needs of a model, or of several equal ones that are tuned side by side."""

    num_replicas: int

    @property
    def shape(self) -> ModelShape:
        """What its cost depends on."""
        ...

    def logits(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """Scores of the token after each of `places` `[replicas, rows, asked]` in right-padded `input_ids` `[replicas, rows, length]`.

        Returns:
            `[replicas, rows, asked, vocabulary]`.
        """
        ...

    def token_embeddings(self) -> Tensor:
        """The lookup table of the input, of the first replica, `[vocabulary, width]`."""
        ...

    def parameters(self) -> Any:
        """Every parameter; the ones to tune have `requires_grad`."""
        ...

    def to(self, device: torch.device) -> Any:
        """The model on `device`."""
        ...

    def snapshot(self, keep: bool = True) -> Callable[[Path], None]:
        """A copy of the model as it is now, adapters merged in unless they are to stay alone: what writes it into a folder, at any later time.

        Every worker asks; those that are not to write `keep` nothing.
        """
        ...


class TransformersModel(nn.Module):
    """Any causal language model of transformers, optionally with LoRA adapters; one replica."""

    num_replicas = 1

    def __init__(self, folder: str, lora: LoraConfig | None = None, precision: str = "fp32") -> None:
        """Loads it.

        Args:
            folder: a local folder, or a hub name with or without a revision (`published.reference`).
            lora: None: all weights are tuned.
            precision: `bf16` keeps frozen weights and saved ones in bf16; what is tuned is in fp32 all the same, or small updates would be lost.
        """
        super().__init__()
        self.saved_as = torch.bfloat16 if precision == "bf16" else torch.float32
        model = load_causal(folder, self.saved_as if lora else torch.float32)
        self.model = with_adapters(model, lora) if lora else model
        self.lora = lora

    @property
    def causal(self) -> Any:
        """The model of transformers, its layers adapted or not."""
        return self.model.get_base_model() if self.lora else self.model

    def forward(self, input_ids: Tensor, scored: Tensor, positions: Tensor | None = None) -> Tensor:
        """The model's own scores at some places: whatever it does to those of its output layer (scales, caps) is done.

        Args:
            input_ids: `[num_lines, length]`, padded on the right.
            scored: which places, bool `[num_lines, length]`.
            positions: of every token in its row, where a line holds several; transformers keeps them apart by it.

        Returns:
            `[num_scored, vocabulary]`, line by line.
        """
        return self._scores(input_ids, lambda states: states[scored][None], positions)[0]

    def logits(self, input_ids: Tensor, places: Tensor) -> Tensor:
        """The model's own scores at `places`."""
        return self._scores(input_ids[0], lambda states: states.take_along_dim(places[0, :, :, None], dim=1))[None]

    def checkpoint_gradients(self) -> None:
        """From now on activations within a layer are computed anew in the backward pass instead of being kept."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in self.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True  # It asks for that. Its parts stay as they were, without dropout.

    def _scores(self, input_ids: Tensor, chosen: Callable[[Tensor], Tensor], positions: Tensor | None = None) -> Tensor:
        """A forward pass of the model as its authors wrote it, but its output layer gets no more than what is `chosen` of `[lines, length, width]`.

        Scores of every place would take more memory than the rest of the pass. Right padding needs no mask under causal attention.
        """
        taken = []

        def choose(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor]:
            taken.append(module)
            return (chosen(states[0]),)

        given = {} if positions is None else {"position_ids": positions}
        hook = self.model.get_output_embeddings().register_forward_pre_hook(choose)
        try:
            scores: Tensor = self.causal(input_ids=input_ids, use_cache=False, **given).logits
        finally:
            hook.remove()
        if len(taken) != 1:
            raise UserError(
                f"model: {type(self.causal).__name__} must give its scores by one call of its output layer, got {len(taken)}; "
                "take a model of another architecture"
            )
        return scores

    def token_embeddings(self) -> Tensor:
        """The input embeddings' table."""
        table: Tensor = self.model.get_input_embeddings().weight
        return table

    @property
    def shape(self) -> ModelShape:
        """Every matrix that is no lookup table, and attention of as many heads as the configuration tells (none: no attention)."""
        config, head = self.model.config.get_text_config(), self.model.get_output_embeddings().weight
        left_out = {id(head), *(id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding))}
        heads = getattr(config, "num_attention_heads", 0)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
        matrices = [p for p in self.parameters() if p.ndim >= 2 and id(p) not in left_out]
        return ModelShape.of(matrices, head, config.num_hidden_layers * heads * head_size)

    def snapshot(self, keep: bool = True) -> Callable[[Path], None]:
        """Of the full model in its own architecture, adapters merged into a copy of the weights; or of the adapters alone, as peft has them."""
        copied = partial(self._as_saved, keep=keep)
        if self.lora is not None and not self.lora.merged:
            alone = {name: copied(value) for name, value in self.model.state_dict(keep_vars=True).items() if ".lora_" in name}
            # peft would look on the hub whether embeddings were changed.
            return lambda folder: self.model.save_pretrained(folder, state_dict=alone, save_embedding_layers=False)
        kept = merged_state(self.causal, copied)
        return lambda folder: self.causal.save_pretrained(folder, state_dict=kept)

    def _as_saved(self, value: Tensor, keep: bool) -> Tensor | None:
        """A copy of all of `value`, beside the accelerator; every worker helps to gather it."""
        gathered = whole(value.detach())
        return gathered.to("cpu", self.saved_as if value.is_floating_point() else value.dtype, copy=True) if keep else None


def load_causal(folder: str, dtype: torch.dtype) -> Any:
    """The causal language model of transformers in `folder` (or `published.reference`); from safetensors alone, for other weights are pickles.

    Raises:
        UserError: it cannot be loaded so.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(**Published.of(folder).arguments, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        rule = "its weights must be in safetensors: convert a pickle that you trust with `save_pretrained`"
        raise unreadable("model", folder, error, rule) from error
    # Capped scores of attention (Gemma 2): torch's fused attention would leave the caps out.
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
    # transformers reads settings of sampling that it then refuses to write, and their authors' own file goes beside what is saved (`write_model`).
    own = model.generation_config
    model.generation_config = GenerationConfig(bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id)
    return model


def load_model(
    folder: str | Path, implementation: str, lora: LoraConfig | None = None, precision: str = "fp32", *, num_replicas: int = 1
) -> LanguageModel:
    """The model in `folder`, ready to be tuned.

    Raises:
        UserError: it cannot be loaded so; or several replicas are wanted of transformers, which has none.
    """
    if implementation == "lean":
        return LeanLlama.load(Path(folder), num_replicas).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    if num_replicas > 1:
        raise UserError(f"proxy.model.implementation: must be lean to tune {num_replicas} proxies side by side, got transformers")
    return TransformersModel(str(folder), lora, precision)


def load_tokenizer(folder: str | Path, chat_template: Literal["own", "plain"] = "own") -> Any:
    """The tokenizer beside a model, with a pad token.

    Args:
        folder: of the model, or its `reference`.
        chat_template: as in `ModelConfig`.

    Raises:
        UserError: there is none, or it has no end-of-text token.
    """
    tokenizer = _published_tokenizer(str(folder))
    if tokenizer.eos_token_id is None:
        raise UserError(f"model: the tokenizer in {str(folder)!r} must have an eos token; add one to its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        logger.warning("the tokenizer in %r has no pad token; its end token pads, which is neither attended to nor scored", str(folder))
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template == "plain":
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def check_window(folder: str | Path, max_length: int) -> None:
    """Makes sure that rows of `max_length` tokens fit the model in `folder`, a folder or `reference`.

    Raises:
        UserError: they are longer than what it was made for, or it has no configuration that can be read.
    """
    check_reach(published_config(folder), str(folder), max_length)


def check_reach(config: Any, model: str, max_length: int) -> None:
    """As `check_window`, where the configuration of `model` is known already."""
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    if window is not None and max_length > window:
        raise UserError(f"tuning.max_length: must be at most the {window} tokens of the model's window ({model}), got {max_length}; lower it")


def save_model(model: LanguageModel, base_folder: str | Path, folder: Path) -> None:
    """A complete Hugging Face folder: `model` with the tokenizer of `base_folder` (or `reference`), exactly as its authors made it."""
    write_model(model.snapshot(), base_folder, folder)


def write_model(write: Callable[[Path], None], base_folder: str | Path, folder: Path) -> None:
    """`save_model` of what was a model's `snapshot`."""
    write(folder)
    _kept_tokenizer(str(base_folder)).save_pretrained(folder)
    settings = Published.of(base_folder).file("generation_config.json")
    if settings is not None:  # Models write no more of it than their special tokens.
        shutil.copy(settings, folder)


def _published_tokenizer(folder: str) -> Any:
    """Read anew, without the pad token that `load_tokenizer` may add: it would tell later users that the end token is padding."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(**Published.of(folder).arguments)
    except (OSError, ValueError) as error:
        raise unreadable("tokenizer of the model", folder, error) from error


_kept_tokenizer = lru_cache(maxsize=2)(_published_tokenizer)
"""For `save_model` alone, which changes nothing in it and is called after every task."""
