"""Base models: a Llama preset trained from scratch on what must not be forgotten, as an ordinary Hugging Face folder.

    anchors (+ the builtin pre-training worlds) → tokenizer → LeanLlama → <cache_root>/<content hash>/   (cost.json: what that took)

No text of a task of the sequence shapes the tokenizer or the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proxymix.account import Cost, Meter
from proxymix.artifacts import read_json, write_folder, write_json
from proxymix.config import Config, ModelConfig, TuningConfig
from proxymix.data.chat import PLAIN_TEMPLATE
from proxymix.data.encoding import encode_split, example_ids, gather
from proxymix.data.fitting import fits
from proxymix.data.sources import configured_source
from proxymix.data.tokenizers import train_bpe, word_tokenizer
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.learner import Learner
from proxymix.learners.published import reference
from proxymix.types import Example

PRESETS = {"nano": (32, 2, 96), "micro": (64, 2, 192), "mini": (96, 3, 256), "small": (128, 4, 384)}
"""Hidden size, layers, inner size; heads are 32 wide, as vLLM's CPU attention wants them."""
BUILTIN_CORPUS = 24_000
"""Examples of the builtin pre-training mixture; seen several times."""
_RECIPE = 2
"""Raise it when a change here makes old cached bases wrong."""

Progress = Callable[[int, int], None]


def base_folder(config: Config, model: ModelConfig) -> str:
    """Where the base model stands or will stand: the hash of all that determines it names the folder.

    A `path` or `hub` model is its own base.
    """
    if model.preset is None:
        return reference(model)
    determined_by = {
        "recipe": _RECIPE,
        "preset": model.preset,
        "pretraining": config.pretraining.model_dump(mode="json"),
        "max_length": config.tuning.max_length,
        "seed": config.seed,
        "corpus": _digest(pretraining_corpus(config)),
    }
    key = hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()[:16]
    return str(Path(config.cache_root) / f"{model.preset}-{key}")


def is_ready(model: ModelConfig, folder: str) -> bool:
    """Whether nothing needs to be trained for `model`, whose base is `folder`."""
    return model.preset is None or (Path(folder) / "model.safetensors").exists()


def base_cost(folder: str) -> Cost:
    """What training the base in `folder`, a preset's, once took."""
    return Cost(**read_json(Path(folder) / "cost.json"))


def pretrain_base(config: Config, model: ModelConfig, progress: Progress | None = None) -> str:
    """The base model's folder; trained now unless it is there already.

    Raises:
        NonFiniteLossError: the learning rate is too high for the preset.
    """
    folder = base_folder(config, model)
    if model.preset is None or is_ready(model, folder):
        return folder
    meter = Meter()
    corpus = pretraining_corpus(config)
    tokenizer = build_tokenizer(config, corpus)
    network = LeanLlama(llama_config(model.preset, tokenizer, max(config.tuning.max_length, 64)))
    network.initialise(torch.Generator().manual_seed(config.seed))
    flops = _train(network, corpus, tokenizer, config, progress)

    def fill(temporary: Path) -> None:
        network.save(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "cost.json", asdict(meter.read(flops)))

    if not is_ready(model, folder):  # Else another run was as quick; it trained the same, and may be reading it.
        write_folder(Path(folder), fill)
    return folder


def pretraining_corpus(config: Config) -> Sequence[Example]:
    """What a base model may see: the builtin mixture, or the training rows of the configured anchors."""
    if config.pretraining.tokenizer == "words":
        from proxymix.data.builtin import pretraining_examples

        return pretraining_examples(BUILTIN_CORPUS, config.seed)
    return [example for spec in config.sequence.anchors for example in configured_source(config, spec).train]


def build_tokenizer(config: Config, corpus: Sequence[Example]) -> Any:
    """The closed vocabulary's tokenizer, or a byte-level BPE trained on `corpus`."""
    if config.pretraining.tokenizer == "words":
        from proxymix.data.builtin import VOCABULARY

        tokenizer = word_tokenizer(VOCABULARY)
    else:
        tokenizer = train_bpe((text for example in corpus for text in (example.prompt, example.response)), config.pretraining.vocabulary_size)
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def llama_config(preset: str, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """A `config.json` that transformers, vLLM and `LeanLlama` all read alike."""
    width, layers, inner = PRESETS[preset]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "head_dim": 32,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2 * max_length,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "initializer_range": width**-0.5 / 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "dtype": "float32",
    }


def _train(network: LeanLlama, corpus: Sequence[Example], tokenizer: Any, config: Config, progress: Progress | None) -> int:
    """Trains in place; returns the operations that took."""
    settings = config.pretraining
    if any(spec.unfit == "drop" for spec in config.sequence.anchors):  # How many go is said where the anchor itself is encoded.
        corpus = [row for row in corpus if fits(*example_ids(row, tokenizer), config.tuning.max_length)]
    split = encode_split(corpus, tokenizer, config.tuning.max_length)
    learner = Learner(network, TuningConfig(learning_rate=settings.learning_rate, batch_size=settings.batch_size))
    learner.begin_task(settings.num_steps)
    rng, flops = np.random.default_rng(config.seed), 0
    for index in range(settings.num_steps):
        rows = rng.integers(len(split), size=settings.batch_size)
        batch = gather([split], [(0, int(row)) for row in rows])
        learner.train_step(batch)
        flops += learner.shape.training_flops(batch.shape)
        if progress is not None and (index % 20 == 0 or index + 1 == settings.num_steps):
            progress(index + 1, settings.num_steps)
    return flops


def _digest(corpus: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in corpus:
        digest.update(f"{example.prompt}\x1f{example.response}\x1e".encode())
    return digest.hexdigest()
