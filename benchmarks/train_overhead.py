"""What our loop costs beside the training itself: under Ray Train, against a plain torch loop and a Hugging Face Trainer.

    python benchmarks/train_overhead.py --config configs/demo.yaml [--preset small] [--steps 32] [--rounds 7] [key.path=value …]

All three train the same model on the same batches, in one Ray Train worker on one thread, in turn, round after round. `ours` is all that a
target run does but reading validation losses, which is the method and no overhead, and asking a service and a tracker, which are elsewhere
(`service_load.py`): the run's beginning, mixture, batches, steps, decisions by an (untrained) policy in this process, each kept before its stage,
records, costs, checkpoints, the finished model. `plain` computes what ours does a step, from batches that are drawn already, and nothing else. The
Trainer's start-up is left out, and it neither logs nor saves. Prints one JSON line: tokens a second, ratios (median over rounds, with the
range), and the share of the mixture sampler and the decision in ours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION"] = "0"  # It asks for a dashboard.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import ray
import torch
from proxy_throughput import _Clock, _ends, _examples, _InOrder, ratio, write_model
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, PrinterCallback, TrainingArguments

from cluster.tuning import target_builder
from proxymix.account import Account
from proxymix.artifacts import read_json, write_json
from proxymix.cases import Case, CaseBuilder, sequence_tasks
from proxymix.config import Config, load_config
from proxymix.continual import run_continual
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.data.encoding import IGNORED, Batch
from proxymix.journal import RunJournal
from proxymix.learners.models import load_model, load_tokenizer
from proxymix.learners.schedule import rate_factor


def main() -> None:
    """Starts Ray Train, which starts the worker that measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int, default=32, help="a stage; a decision and a checkpoint every so many")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [*arguments.overrides, "target.model.implementation=transformers"])
    here = Path(__file__).resolve().parent
    variables = {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    with tempfile.TemporaryDirectory() as folder:
        work = partial(measure, config, arguments.preset, arguments.steps, arguments.rounds, Path(folder))
        storage = RunConfig(name="overhead", storage_path=f"{folder}/ray_train")
        TorchTrainer(work, torch_config=TorchConfig(backend="gloo"), scaling_config=ScalingConfig(num_workers=1), run_config=storage).fit()
        found = read_json(Path(folder) / "found.json")
    ray.shutdown()
    print(json.dumps({"benchmark": "train_overhead", "torch": torch.__version__, "preset": arguments.preset, "rounds": arguments.rounds, **found}))


def measure(config: Config, preset: str, num_steps: int, num_rounds: int, folder: Path) -> None:
    """In the worker: every way in turn; what is found goes to a file."""
    torch.set_num_threads(1)
    base = folder / "base"
    write_model(config, preset, base)
    ours = OurLoop(target_builder(config, str(base)), num_steps, folder)
    batches = ours.recorded()
    ways = {"ours": ours.run, "plain": PlainLoop(base, config, batches).run, "trainer": TrainerLoop(base, config, batches).run}
    num_tokens = sum(int(_ends(batch).sum()) for batch in batches)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_index in range(num_rounds + 1):
        for name, way in ways.items():
            took = way()
            if round_index:  # The first is to warm up.
                seconds[name].append(took)
    found = {
        "steps_per_stage": num_steps,
        "milliseconds_a_step": {name: round(1e3 * float(np.median(values)) / len(batches), 2) for name, values in seconds.items()},
        "tokens_per_second": {name: round(num_tokens / float(np.median(values))) for name, values in seconds.items()},
        "ours_over_plain": ratio(seconds["plain"], seconds["ours"]),
        "ours_over_trainer": ratio(seconds["trainer"], seconds["ours"]),
        "mixture_and_decision_share": round(float(np.median(ours.shares[-num_rounds:])), 5),
    }
    write_json(folder / "found.json", found)


class OurLoop:
    """A target run of one task, as `cluster.tuning` has it."""

    def __init__(self, builder: CaseBuilder, num_steps: int, folder: Path) -> None:
        """Args: `num_steps` a stage; `folder` takes what runs write."""
        self.builder, self.folder, self.shares = builder, folder, list[float]()
        config = builder.config
        self.case = Case("overhead", sequence_tasks(config)[:1], (num_steps,), seed=0)
        controller, num_sources = config.controller, len(config.sequence.anchors) + 1
        parameters = initial_parameters(controller.architecture, controller.hidden_units, num_sources, np.random.default_rng(0))
        self.controller = FrozenController(build_policy(controller.architecture, parameters), {"name": "untrained"})

    def run(self) -> float:
        """Seconds, but for reading losses."""
        run = self.builder.build(self.case)
        run.observe()
        draw, drawing = run.sampler.draw_stage, list[float]()

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            drawn = draw(*arguments)
            drawing.append(time.perf_counter() - began)
            return drawn

        run.sampler.draw_stage = timed  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            account = Account(Path(folder) / "costs.jsonl")
            journal = RunJournal(Path(folder) / "run", self.builder.learner, self.folder / "base", account)
            started = time.perf_counter()
            journal.resume(run)
            records = run_continual(run, journal.asking(lambda sha256: self.controller), journal)
            seconds = time.perf_counter() - started - sum(record.seconds["validate"] for record in records)
            journal.close()
        self.shares.append((sum(drawing) + sum(record.seconds["decide"] for record in records)) / seconds)
        return seconds

    def recorded(self) -> list[Batch]:
        """The batches of the run."""
        batches: list[Batch] = []
        learner = self.builder.learner
        train = learner.train_steps

        def noted(step: Sequence[Batch]) -> list[float]:
            batches.extend(step)
            return train(step)

        learner.train_steps = noted  # type: ignore[method-assign]
        self.run()
        learner.train_steps = train  # type: ignore[method-assign]
        return batches


class PlainLoop:
    """What one would write for this model and these batches, and nothing that is not needed."""

    def __init__(self, base: Path, config: Config, batches: list[Batch]) -> None:
        """Args: `batches` of the whole task."""
        self.model, self.tuning, self.batches = load_model(str(base), "transformers"), config.tuning, batches

    def run(self) -> float:
        """Seconds."""
        parameters = list(self.model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=self.tuning.learning_rate, weight_decay=self.tuning.weight_decay, fused=True)
        factor = partial(rate_factor, num_steps=len(self.batches), warmup_fraction=self.tuning.warmup_fraction)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        started, losses = time.perf_counter(), []
        for batch in self.batches:
            scored = batch.labels != IGNORED
            loss = cross_entropy(self.model(batch.input_ids, scored), batch.labels[scored])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.tuning.max_grad_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        return time.perf_counter() - started


class TrainerLoop:
    """The same batches through `Trainer`."""

    def __init__(self, base: Path, config: Config, batches: list[Batch]) -> None:
        """Args: `batches` of the whole task."""
        self.clock, tuning = _Clock(), config.tuning
        settings = TrainingArguments(
            output_dir=str(base / "trainer"),
            max_steps=len(batches),
            per_device_train_batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            lr_scheduler_type="cosine",
            max_grad_norm=tuning.max_grad_norm,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        self.trainer = _InOrder(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            settings,
            data_collator=DataCollatorForSeq2Seq(load_tokenizer(base), padding="longest"),
            train_dataset=[example for batch in batches for example in _examples(batch)],
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)

    def run(self) -> float:
        """Seconds."""
        self.trainer.train()
        return self.clock.seconds


if __name__ == "__main__":
    main()
