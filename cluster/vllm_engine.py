"""vLLM as a `Generator` inside one process: no HTTP, no child processes, one engine for all checkpoints. The only file that imports vllm.

    base folder → LLM (once, seconds) → reload_weights(checkpoint) (milliseconds) → greedy tokens, or what it thinks of given ones
                                      → or adapters beside the base, which stays as it is

The process's environment must say how vLLM is to behave before this file is imported (`cluster.evaluation_actor.ENVIRONMENT`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, get_args

import torch
import vllm
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
from vllm.config.lora import MaxLoRARanks
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from proxymix.config import Config, LoraConfig
from proxymix.evaluation.generation import Tokens, until
from proxymix.learners.adapters import module_names
from proxymix.learners.published import Published, published_config


class VllmGenerator:
    """Holds one vLLM engine; implements `proxymix.evaluation.generation.Generator`.

    With `evaluation.tensor_parallel` > 1 the engine's parts are child processes of the actor, which holds all their GPUs; they go when it goes. Run
    with two CPU processes (load, reload, log probabilities); not run on GPUs.
    """

    def __init__(self, base_folder: str, config: Config, tokenizer: Any) -> None:
        """Args: `base_folder` is a model folder or `reference`; `tokenizer` supplies the end token."""
        self.end = int(tokenizer.eos_token_id)
        new_tokens = config.evaluation.max_new_tokens
        self.sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, stop_token_ids=[self.end], detokenize=False)
        # On a GPU the actor has the device to itself and vLLM measures what is left for the cache.
        extra: dict[str, Any] = {} if torch.cuda.is_available() else {"kv_cache_memory_bytes": config.evaluation.kv_cache_mib << 20}
        if (parallel := config.evaluation.tensor_parallel) > 1:
            # Left to itself, vLLM would ask Ray for more actors, with GPUs of their own, where it finds itself in a placement group.
            extra |= {"tensor_parallel_size": parallel, "distributed_executor_backend": "mp"}
        self.adapters: LoRARequest | None = None
        self.numbers = count(1)
        if config.target.lora and not config.target.lora.merged:
            extra |= _room_for_adapters(config.target.lora, base_folder)
        name, revision = Published.of(base_folder)
        self.engine = LLM(
            name,
            revision=revision,
            tokenizer_revision=revision,
            load_format="safetensors",  # Else vLLM would read pickles where there is nothing else.
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
        """New weights into the running engine; of a folder of adapters these alone."""
        if self.engine.llm_engine.vllm_config.lora_config is not None:
            found = (Path(folder) / "adapter_config.json").exists()
            # vLLM knows adapters by number, so each gets one of its own.
            self.adapters = LoRARequest(folder, next(self.numbers), folder) if found else None
            return
        # Of a name on the hub, vLLM would reload the newest revision.
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": Published.of(folder).folder})
        self.engine.collective_rpc(_pack_output_layer)
        self.engine.reset_prefix_cache()

    def generate(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        """All prompts at once; vLLM batches them."""
        outputs = self._outputs(prompts, self.sampling)
        return [until(list(output.outputs[0].token_ids), self.end) for output in outputs]

    def log_probabilities(self, rows: Sequence[Tokens]) -> list[list[float]]:
        """As prompts, whose tokens vLLM scores on the way to a first new one; it looks none of them up in its prefix cache then."""
        asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._outputs(rows, asked)
        told = [output.prompt_logprobs[1:] for output in outputs]
        return [[place[token].logprob for place, token in zip(places, row[1:], strict=True)] for places, row in zip(told, rows, strict=True)]

    def _outputs(self, prompts: Sequence[Tokens], asked: SamplingParams) -> list[Any]:
        return self.engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False, lora_request=self.adapters)


def check_kernels() -> None:
    """Where vLLM's compiled part cannot be loaded, it only warns, and fails later over a name that is not there.

    Raises:
        ImportError: says what is missing.
    """
    if current_platform.is_cpu() and not hasattr(torch.ops._C, "init_cpu_memory_env"):
        try:
            ctypes.CDLL(str(Path(vllm.__file__).with_name("_C.abi3.so")))
        except OSError as error:
            raise ImportError(f"{error}; Debian's package libnuma1 has libnuma.so.1") from error
        raise ImportError("its compiled part does not suit this processor")


def _room_for_adapters(lora: LoraConfig, base_folder: str) -> dict[str, Any]:
    """What an engine must know of adapters before there are any."""
    with torch.device("meta"):
        names = module_names(AutoModelForCausalLM.from_config(published_config(base_folder)), lora.modules)
    rank = min(rank for rank in get_args(MaxLoRARanks) if rank >= lora.rank)
    # Without the names vLLM makes room in the output layer too, and on a CPU fails there over the log probabilities of prompts.
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank, "lora_target_modules": names}


def _context_length(config: Config, base_folder: str) -> int:
    """Tokens that a prompt and its answer may take: the longest row of tuning and a wrong answer that does not end, if the model reaches so far."""
    wanted = config.tuning.max_length + config.evaluation.max_new_tokens
    return min(wanted, getattr(published_config(base_folder).get_text_config(), "max_position_embeddings", wanted))


def _pack_output_layer(worker: Any) -> None:
    """Prepares the output layer's weights again.

    Where it is tied to the embedding, vLLM's reload updates the embedding alone, and on a CPU the output layer goes on with the
    packed copy it made of the *first* weights: answers change, and are wrong. (Elsewhere this does nothing.)
    """
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
