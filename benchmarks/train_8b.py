"""The target's optimizer step, ours (`LargeLearner`) against Hugging Face's Trainer: LLaMA-3-8B with random weights and LoRA, in turn on one GPU.

    python benchmarks/train_8b.py [--rounds 3] [--steps 4] [--packs 16] [--micro-batch 1] [--peak-tflops 989]      one JSON line
    python benchmarks/train_8b.py --tiny                                                                           the same on a CPU, in seconds

Needs torch and transformers; adapters are peft's where it is installed, else plain ones, for both ways. The Trainer needs accelerate, without which
ours is measured alone. Both tune one model on the same packs of 2,048 tokens, each with an optimizer of its own. MFU is what
rows need (`ModelShape`: no gradient of frozen weights, nothing for activations computed twice or other rows of a pack) over the card's bf16 peak.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from proxymix.data.encoding import IGNORED, Batch
from proxymix.data.portions import portions
from proxymix.learners.large import LargeLearner
from proxymix.learners.models import TransformersModel

LLAMA_3_8B = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
TINY = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
PEAK_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "4090": 165.0}
"""Dense bf16 products, by what stands in the card's name (SXM where there are several); its makers' data sheets."""
RANK, ALPHA = 64, 128.0
TUNING: Any = SimpleNamespace(learning_rate=2e-4, warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=1.0)


class RandomModel(TransformersModel):
    """As the target's model, but with random weights instead of a folder's."""

    def __init__(self, device: torch.device, geometry: dict[str, Any], window: int) -> None:
        """Args: `geometry` of a Llama with a window of `window` tokens; frozen weights are in bf16 on a GPU."""
        nn.Module.__init__(self)
        self.saved_as, self.lora = torch.bfloat16 if device.type == "cuda" else torch.float32, None
        heads = {"num_key_value_heads": geometry["num_attention_heads"] // 4, "max_position_embeddings": window, "rope_theta": 500000.0}
        config = AutoConfig.for_model("llama", **geometry, **heads, tie_word_embeddings=False)
        with torch.device(device):
            self.model = AutoModelForCausalLM.from_config(config, dtype=self.saved_as)
        self.adapters, self.wrapped = _adapted(self.model)

    @property
    def causal(self) -> Any:
        """Without peft's wrapping, which changes its layers in place."""
        return self.model


class PlainAdapter(nn.Module):
    """W x + α/r · B A x, for where there is no peft."""

    def __init__(self, base: nn.Linear) -> None:
        """Around `base`, which is frozen."""
        super().__init__()
        self.base, place = base, {"device": base.weight.device}
        self.down = nn.Parameter(torch.randn(RANK, base.in_features, **place) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK, **place))

    def forward(self, x: Tensor) -> Tensor:
        """`[…, inputs]` to `[…, outputs]`."""
        return self.base(x) + ALPHA / RANK * (x.to(self.down.dtype) @ self.down.T @ self.up.T)


def _adapted(model: Any) -> tuple[str, Any]:
    """Freezes `model` and adapts queries and values; whose adapters, and what the Trainer is to be given."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        model.requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj, layer.self_attn.v_proj = (PlainAdapter(part) for part in (layer.self_attn.q_proj, layer.self_attn.v_proj))
        return "plain", model
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return "peft", get_peft_model(model, settings)  # With adapters in fp32, whatever the model is in.


def main() -> None:
    """Measures both ways in turn and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps a round and way, and one more to warm up")
    parser.add_argument("--packs", type=int, default=16, help="of 2,048 tokens, a step")
    parser.add_argument("--micro-batch", type=int, default=1, help="packs that go through the model at a time")
    parser.add_argument("--row-tokens", type=int, default=512, help="of which the second half is the answer")
    parser.add_argument("--keep-activations", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--peak-tflops", type=float, help="of the card, if it is not known here")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny runs on the CPU")
    torch.manual_seed(0)
    device = torch.device("cpu" if arguments.tiny else "cuda")
    pack_tokens, row_tokens = (64, 16) if arguments.tiny else (2048, arguments.row_tokens)
    model = RandomModel(device, TINY if arguments.tiny else LLAMA_3_8B, 4 * pack_tokens)
    step = SimpleNamespace(
        precision="fp32" if arguments.tiny else "bf16",
        micro_batch_size=arguments.micro_batch,
        pack_tokens=pack_tokens,
        gradient_checkpointing=not arguments.keep_activations,
    )
    batch = rows(arguments.packs * (pack_tokens // row_tokens), row_tokens, model.model.config.vocab_size)
    ways: dict[str, Callable[[int], float]] = {"ours": lambda steps: our_seconds(model, step, batch, steps)}
    if transformers.utils.is_accelerate_available():
        ways["trainer"] = lambda steps: trainer_seconds(model, step, batch, steps)
    print(json.dumps(measured(model, ways, batch, arguments, device)))


def measured(model: RandomModel, ways: dict[str, Callable[[int], float]], batch: Batch, arguments: Any, device: torch.device) -> dict[str, Any]:
    """Tokens a second, MFU and peak memory of every way."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = dict.fromkeys(ways, 0.0)
    for round_index in range(arguments.rounds + 1):
        for name, seconds in ways.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            rate = arguments.steps * batch.input_ids.numel() / seconds(arguments.steps)
            if round_index:  # The first is to warm up.
                rates[name].append(rate)
            if device.type == "cuda":
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 2**30)
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    peak = arguments.peak_tflops or next((peak for name, peak in PEAK_TFLOPS.items() if name in card), None)
    flops = model.shape.training_flops(batch.shape) / batch.input_ids.numel()
    return {
        "benchmark": "train_8b",
        "model": "tiny" if arguments.tiny else "llama-3-8b, random weights",
        "device": card,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "adapters": model.adapters,
        "arguments": vars(arguments),
        "tokens_per_second": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
        "ours_over_trainer": median(a / b for a, b in zip(rates["ours"], rates["trainer"], strict=True)) if "trainer" in rates else None,
        "peak_tflops": peak,
        "mfu": {name: median(values) * flops / (peak * 1e12) if peak else None for name, values in rates.items()},
        "peak_gib": {name: round(value, 2) for name, value in peaks.items()} if device.type == "cuda" else None,
    }


def rows(num_rows: int, length: int, vocabulary: int) -> Batch:
    """Rows without padding, `[num_rows, length]`; the second half of each is the answer."""
    tokens = torch.randint(vocabulary, (num_rows, length + 1))
    labels = tokens[:, 1:].clone()
    labels[:, : length // 2] = IGNORED
    return Batch(tokens[:, :-1], labels)


def our_seconds(model: RandomModel, step: Any, batch: Batch, steps: int) -> float:
    """Of so many steps, after one."""
    learner = LargeLearner(model, TUNING, step)
    learner.begin_task(steps + 1)
    learner.train_steps([batch])
    began = time.perf_counter()
    for _ in range(steps):
        learner.train_steps([batch])  # Ends in a copy of the loss to the host, so only AdamW may still be under way.
    _finish(learner.device)
    return time.perf_counter() - began


def trainer_seconds(model: RandomModel, step: Any, batch: Batch, steps: int) -> float:
    """The Trainer's, of as many, after one; its start-up is left out, and it neither logs nor saves."""
    lines = [line for portion in portions(batch, lines_at_once=1, pack_tokens=step.pack_tokens) for line in _lines(portion)]
    device = next(model.parameters()).device
    clock = _Clock(device)
    arguments = transformers.TrainingArguments(
        max_steps=steps + 1,
        per_device_train_batch_size=step.micro_batch_size,
        gradient_accumulation_steps=len(lines) // step.micro_batch_size,
        gradient_checkpointing=step.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if step.gradient_checkpointing else None,
        bf16=step.precision == "bf16",
        use_cpu=device.type == "cpu",
        learning_rate=TUNING.learning_rate,
        max_grad_norm=TUNING.max_grad_norm,
        optim="adamw_torch_fused",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
    )
    trainer = transformers.Trainer(model.wrapped, arguments, train_dataset=lines * (steps + 1), callbacks=[clock])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return clock.ends[-1] - clock.ends[0]


def _lines(portion: Any) -> list[dict[str, Tensor]]:
    """Packs as transformers takes them: rows told apart by positions, labels yet to be shifted."""
    positions = torch.arange(portion.input_ids.shape[1]).expand_as(portion.input_ids) if portion.positions is None else portion.positions
    labels = nn.functional.pad(portion.labels[:, :-1], (1, 0), value=IGNORED)
    given = zip(portion.input_ids, positions, labels, strict=True)
    return [{"input_ids": ids, "position_ids": places, "labels": targets} for ids, places, targets in given]


class _Clock(transformers.TrainerCallback):
    """When every optimizer step was over."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.ends = device, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        _finish(self.device)
        self.ends.append(time.perf_counter())


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
