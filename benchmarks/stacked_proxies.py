"""Proxies as one batched model against as many processes, on one GPU or on this machine's CPU: stages a second.

    python benchmarks/stacked_proxies.py [--device cuda] [--preset nano] [--stacked 1 8 64 512] [--processes 1 8] [--seconds 5]

Needs torch alone (no ray, vllm, pydantic or transformers), as a GPU machine may have no more. A stage is eight steps of sixteen rows, of the builtin
benchmark's lengths, and a reading of three probes. Prints a line a measurement and one JSON line; what is measured is interleaved, twice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import multiprocessing

from proxymix.data.encoding import IGNORED, Batch, EncodedSplit
from proxymix.learners.decoder import LeanLlama
from proxymix.learners.learner import Learner

GEOMETRY = {"nano": (32, 2, 96), "micro": (64, 2, 192), "mini": (96, 3, 256), "small": (128, 4, 384)}
"""Hidden size, layers and inner size, as `proxymix.learners.pretraining.PRESETS` (which needs more packages than this file may)."""
VOCABULARY, ROWS, LENGTH, ANSWER, STEPS, PROBES = 230, 16, 10, 3, 8, 3
TUNING: Any = SimpleNamespace(learning_rate=2e-3, warmup_fraction=0.05, weight_decay=0.0, max_grad_norm=1.0)


def main() -> None:
    """Measures every number of proxies both ways, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="nano", choices=list(GEOMETRY))
    parser.add_argument("--stacked", type=int, nargs="*", default=[1, 8, 64, 512])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, dict[int, list[float]]] = {"stacked": {}, "processes": {}}
    for _ in range(arguments.rounds):
        for way, measure in (("stacked", stacked_rate), ("processes", process_rate)):
            for number in getattr(arguments, way):
                rate = measure(number, arguments.device, arguments.preset, arguments.seconds)
                rates[way].setdefault(number, []).append(rate)
                print(f"{way:10s} {number:4d}: {rate:9.1f} stages/s", flush=True)
    best = {way: {number: max(values) for number, values in measured.items()} for way, measured in rates.items()}
    ratio = max(best["stacked"].values()) / max(best["processes"].values()) if best["processes"] else None
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine()
    result = {"benchmark": "stacked_proxies", "device": device, "preset": arguments.preset, "torch": torch.__version__, "stages_per_second": rates}
    print(json.dumps(result | {"best_stacked_over_best_processes": ratio}))


def stacked_rate(num_proxies: int, device: str, preset: str, seconds: float, start: Any = None) -> float:
    """Stages a second of `num_proxies` replicas in this process, after a warm-up of one stage; `start` is a barrier to wait at."""
    model = LeanLlama(_config(preset), num_proxies)
    model.initialise(torch.Generator().manual_seed(0))
    learner = Learner(model.to(torch.device(device)), TUNING)
    plan = [[_batch(replica * STEPS + step) for replica in range(num_proxies)] for step in range(STEPS)]
    probes = {str(index): _split(index) for index in range(PROBES)}
    _stage(learner, plan, probes)
    if start is not None:
        start.wait()
    began, stages = time.perf_counter(), 0
    while (gone := time.perf_counter() - began) < seconds or not stages:
        _stage(learner, plan, probes)  # Ends in a copy to the host, so nothing is still under way.
        stages += num_proxies
    return stages / gone


def process_rate(num_processes: int, device: str, preset: str, seconds: float) -> float:
    """Stages a second of `num_processes` processes with one proxy each, side by side."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(num_processes), context.SimpleQueue()
    workers = [context.Process(target=_worker, args=(device, preset, seconds, barrier, answers)) for _ in range(num_processes)]
    for worker in workers:
        worker.start()
    rate = sum(answers.get() for _ in workers)
    for worker in workers:
        worker.join()
    return float(rate)


def _worker(device: str, preset: str, seconds: float, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(stacked_rate(1, device, preset, seconds, barrier))


def _stage(learner: Learner, plan: list[list[Batch]], probes: dict[str, EncodedSplit]) -> None:
    learner.begin_task(STEPS)
    for batches in plan:
        learner.train_steps(batches)
    learner.losses_of_all(probes)


def _batch(seed: int) -> Batch:
    tokens = torch.randint(4, VOCABULARY, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    labels = torch.full((ROWS, LENGTH), IGNORED)
    labels[:, -ANSWER:] = tokens[:, -ANSWER:]
    return Batch(tokens[:, :-1], labels)


def _split(seed: int) -> EncodedSplit:
    batch = _batch(10_000 + seed)
    return EncodedSplit(batch.input_ids, batch.labels, torch.full((ROWS,), LENGTH))


def _config(preset: str) -> dict[str, Any]:
    width, layers, inner = GEOMETRY[preset]
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32, "head_dim": 32}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner, "vocab_size": VOCABULARY}
    return {"model_type": "llama", **sizes, **heads, "tie_word_embeddings": True, "initializer_range": width**-0.5 / 2}


if __name__ == "__main__":
    main()
