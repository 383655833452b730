"""vLLM as a `Generator` inside one process: no HTTP, no child processes, one engine for all checkpoints. The only file that imports vllm.

    base folder → LLM (once, seconds) → reload_weights(checkpoint) (milliseconds) → greedy tokens, or what it thinks of given ones

The process's environment must say how vLLM is to behave before this file is imported (`cluster.evaluation_actor.ENVIRONMENT`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig
from vllm import LLM, SamplingParams
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

from proxymix.config import Config
from proxymix.evaluation.generation import Tokens, until


class VllmGenerator:
    """Holds one vLLM engine; implements `proxymix.evaluation.generation.Generator`."""

    def __init__(self, base_folder: str, config: Config, tokenizer: Any) -> None:
        """Args: `base_folder` is a model folder or hub name; `tokenizer` supplies the end token."""
        self.end = int(tokenizer.eos_token_id)
        new_tokens = config.evaluation.max_new_tokens
        self.sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, stop_token_ids=[self.end], detokenize=False)
        # On a GPU the actor has the device to itself and vLLM measures what is left for the cache.
        extra: dict[str, Any] = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": config.evaluation.kv_cache_mib << 20}
        if (parallel := config.evaluation.tensor_parallel) > 1:
            # Left to itself, vLLM would ask Ray for more actors, with GPUs of their own, where it finds itself in a placement group.
            extra |= {"tensor_parallel_size": parallel, "distributed_executor_backend": "mp"}
        self.engine = LLM(
            base_folder,
            dtype="bfloat16" if config.target.precision == "bf16" else "float32",
            max_model_len=_context_length(config, base_folder),
            enforce_eager=True,
            skip_tokenizer_init=True,
            generation_config="vllm",  # Not the model's own sampling defaults.
            use_tqdm_on_load=False,
            disable_log_stats=True,
            **extra,
        )

    def load(self, folder: str) -> None:
        """New weights into the running engine."""
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.engine.collective_rpc(_pack_output_layer)
        self.engine.reset_prefix_cache()

    def generate(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        """All prompts at once; vLLM batches them."""
        outputs = self.engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], self.sampling, use_tqdm=False)
        return [until(list(output.outputs[0].token_ids), self.end) for output in outputs]

    def log_probabilities(self, rows: Sequence[Tokens]) -> list[list[float]]:
        """As prompts, whose tokens vLLM scores on the way to a first new one; it looks none of them up in its prefix cache then."""
        asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self.engine.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False)
        told = [output.prompt_logprobs[1:] for output in outputs]
        return [[place[token].logprob for place, token in zip(places, row[1:], strict=True)] for places, row in zip(told, rows, strict=True)]


def _context_length(config: Config, base_folder: str) -> int:
    """Tokens that a prompt and its answer may take: the longest row of tuning and a wrong answer that does not end, if the model reaches so far."""
    wanted = config.tuning.max_length + config.evaluation.max_new_tokens
    return min(wanted, getattr(AutoConfig.from_pretrained(base_folder).get_text_config(), "max_position_embeddings", wanted))


def _pack_output_layer(worker: Any) -> None:
    """Prepares the output layer's weights again.

    Where it is tied to the embedding, vLLM's reload updates the embedding alone, and on a CPU the output layer goes on with the
    packed copy it made of the *first* weights: answers change, and are wrong. (Elsewhere this does nothing.)
    """
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
