"""How fast is a proxy stage? Our `advance` against a Hugging Face Trainer on the same model and batches, and against the machine's matrix product.

    python benchmarks/proxy_throughput.py --config configs/demo.yaml [--presets nano micro] [--rounds 5] [key.path=value …]

Everything runs on one thread in this process, in turn, round after round. Both start from tokenised examples, train on the same batches and
read as many probes after each stage; the Trainer's start-up is left out, and it neither logs nor saves. `ours` is one proxy, `side_by_side`
eight at a time, as env runners tune them. Weights are fresh: speed does not depend on them. Prints a line a preset and one JSON line: samples
a second, ratios (median over rounds, with the range), and FLOP/s over the rate of large matrix products: of the operations really computed,
and of those that the plain model needs for the same batches, padding included (`model`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from proxymix.cases import CaseBuilder, draw_cases, proxy_builder
from proxymix.config import Config, ModelConfig, load_config
from proxymix.continual import advance_together
from proxymix.controllers.baselines import UniformReplay
from proxymix.data.encoding import IGNORED, Batch, stack
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.learner import EVALUATION_ROWS
from proxymix.learners.models import load_model, load_tokenizer
from proxymix.learners.pretraining import build_tokenizer, llama_config, pretraining_corpus

GEMM_SIZE = 1024
SIDE_BY_SIDE = 8


def main() -> None:
    """Measures every preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--presets", nargs="*", default=["nano", "micro"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.overrides)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for preset in arguments.presets:
            results[preset] = measured(config, preset, Path(folder) / preset, arguments.rounds)
            print(f"{preset}: " + ", ".join(f"{key} {value}" for key, value in results[preset].items()), flush=True)
    print(json.dumps({"benchmark": "proxy_throughput", "torch": torch.__version__, "rounds": arguments.rounds, "presets": results}))


def measured(config: Config, preset: str, folder: Path, num_rounds: int) -> dict[str, Any]:
    """Rates of one preset, each way in turn."""
    write_model(config, preset, folder)
    config = config.model_copy(update={"proxy": config.proxy.model_copy(update={"model": ModelConfig(path=str(folder))})})
    ours = {number: Stages(proxy_builder(config, str(folder), number), number) for number in (1, SIDE_BY_SIDE)}
    trainer = HuggingFaceStages(folder, ours[1])
    ways: dict[str, Callable[[], tuple[float, int]]] = {"ours": ours[1].run, "side_by_side": ours[SIDE_BY_SIDE].run, "trainer": trainer.run}
    for way in ways.values():
        way()
    rates: dict[str, list[float]] = {name: [] for name in (*ways, "gemm", "flops")}
    for _ in range(num_rounds):
        for name, way in ways.items():
            seconds, samples = way()
            rates[name].append(samples / seconds)
        rates["gemm"].append(gemm_rate())
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).num_parameters()
    computed = ours[1].flops_per_sample
    model = computed * trainer.plain_flops / trainer.lean_flops
    return {
        "samples_per_second": {name: round(float(np.median(rates[name])), 1) for name in ways},
        "ours_over_trainer": ratio(rates["ours"], rates["trainer"]),
        "side_by_side_over_trainer": ratio(rates["side_by_side"], rates["trainer"]),
        "gemm_gflops": round(float(np.median(rates["gemm"])) / 1e9, 1),
        "parameters": plain,
        **{f"{name}_over_gemm": ratio(computed * np.array(rates[name]), rates["gemm"]) for name in ("ours", "side_by_side")},
        **{f"{name}_model_over_gemm": ratio(model * np.array(rates[name]), rates["gemm"]) for name in ("ours", "side_by_side")},
    }


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """Of paired measurements."""
    ratios = np.divide(first, second)
    return {"median": round(float(np.median(ratios)), 3), "min": round(float(ratios.min()), 3), "max": round(float(ratios.max()), 3)}


class Stages:
    """The stages of one task, in the third place of a case, with all that is visible there replayed."""

    def __init__(self, builder: CaseBuilder, num_runs: int) -> None:
        """Args: `num_runs` are tuned side by side, each with a replay share of its own."""
        self.builder, self.num_runs = builder, num_runs
        case = draw_cases(builder.config.controller.curriculum, builder.config.tuning, 1, seed=0)[0]
        self.case = replace(case, steps_per_stage=(1, 1, *case.steps_per_stage[2:]))
        self.controllers = [UniformReplay(0.3 + 0.05 * index) for index in range(num_runs)]
        self.flops_per_sample = 0.0

    def run(self) -> tuple[float, int]:
        """Seconds and training samples."""
        runs = [self.builder.build(self.case) for _ in range(self.num_runs)]
        while runs[0].task_index < 2:
            self._advance(runs)
        started, samples, flops = time.perf_counter(), 0, 0
        while runs[0].task_index == 2:
            for record in self._advance(runs):
                samples += sum(record.counts.values())
                flops += record.training_flops + record.validation_flops
        self.flops_per_sample = flops / samples
        return time.perf_counter() - started, samples

    def _advance(self, runs: Sequence[Any]) -> list[Any]:
        return advance_together(runs, [controller.decide(run.observe()) for controller, run in zip(self.controllers, runs, strict=True)])

    def recorded(self) -> tuple[list[Batch], list[Batch]]:
        """The batches of the task, and the probes read after each of its stages."""
        batches: list[Batch] = []
        probes: list[Batch] = []
        learner = self.builder.learner
        train, read = learner.train_steps, learner.losses_of_all

        def note_batches(step: Sequence[Batch]) -> list[float]:
            batches.extend(step)
            return train(step)

        def note_probes(asked: Any) -> Any:
            probes.append(stack(list(asked.values()))[0])
            return read(asked)

        run = self.builder.build(self.case)
        while run.task_index < 2:
            self._advance([run])
        learner.train_steps, learner.losses_of_all = note_batches, note_probes  # type: ignore[method-assign]
        while run.task_index == 2:
            self._advance([run])
        learner.train_steps, learner.losses_of_all = train, read  # type: ignore[method-assign]
        return batches, probes


class HuggingFaceStages:
    """The same batches and probes through `Trainer`."""

    def __init__(self, folder: Path, ours: Stages) -> None:
        """Args: `ours` says what is trained on and read."""
        self.batches, self.probes = ours.recorded()
        self.steps_per_stage = len(self.batches) // len(self.probes)
        tuning = ours.builder.config.tuning
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        settings = TrainingArguments(
            output_dir=str(folder / "trainer"),
            max_steps=len(self.batches),
            per_device_train_batch_size=len(self.batches[0].input_ids),
            per_device_eval_batch_size=EVALUATION_ROWS,
            eval_strategy="steps",
            eval_steps=self.steps_per_stage,
            learning_rate=tuning.learning_rate,
            lr_scheduler_type="cosine",
            max_grad_norm=tuning.max_grad_norm,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            prediction_loss_only=True,
            dataloader_pin_memory=False,
        )
        self.clock = _Clock()
        tokenizer = load_tokenizer(folder)
        self.trainer = _InOrder(
            model,
            settings,
            data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
            train_dataset=[example for batch in self.batches for example in _examples(batch)],
            eval_dataset=_examples(self.probes[0]),
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)
        plain, lean = load_model(folder, "transformers").shape, ours.builder.learner.shape
        self.plain_flops, self.lean_flops = (sum(shape.training_flops(batch.shape) for batch in self.batches) for shape in (plain, lean))

    def run(self) -> tuple[float, int]:
        """Seconds and training samples."""
        self.trainer.train()
        return self.clock.seconds, sum(len(batch.input_ids) for batch in self.batches)


class _Clock(TrainerCallback):  # type: ignore[misc]
    seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.started


class _InOrder(Trainer):  # type: ignore[misc]
    """The batches are drawn already."""

    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def _examples(batch: Batch) -> list[dict[str, list[int]]]:
    """Rows without padding, with the end token; labels as transformers wants them: at their own position, which it shifts."""
    rows = zip(batch.input_ids.tolist(), batch.labels.tolist(), _ends(batch).tolist(), strict=True)
    return [{"input_ids": [*ids[:end], labels[end - 1]], "labels": [IGNORED, *labels[:end]]} for ids, labels, end in rows]


def _ends(batch: Batch) -> torch.Tensor:
    """Where each row's padding begins, `[num_rows]`."""
    return ((batch.labels != IGNORED) * torch.arange(1, batch.labels.shape[1] + 1)).amax(1)


def gemm_rate(seconds: float = 0.3) -> float:
    """FLOP/s of large fp32 matrix products on one thread."""
    first, second = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    first @ second
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        first @ second
        count += 1
    return 2 * GEMM_SIZE**3 * count / (time.perf_counter() - started)


def write_model(config: Config, preset: str, folder: Path) -> None:
    """A base model of that geometry with fresh weights."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(config, pretraining_corpus(config))
    network = LeanLlama(llama_config(preset, tokenizer, max(config.tuning.max_length, 64)))
    network.initialise(torch.Generator().manual_seed(0))
    network.save(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
