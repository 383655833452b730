"""Proxies as one batched model against as many processes, on one GPU or on this machine's CPU: stages a second.

    python benchmarks/stacked_proxies.py [--device cuda] [--preset nano] [--stacked 1 8 64 512] [--processes 1 8 64 512] [--seconds 5]

Needs torch alone (no ray, vllm, pydantic or transformers), as a GPU machine may have no more. A stage is eight steps of sixteen rows, of the builtin
benchmark's lengths, and a reading of three probes. Processes are as many as proxies unless told otherwise; on a CPU no more than it has cores.
Prints a line a measurement and one JSON line; what is measured is interleaved, twice. What does not fit is told as such and not tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import time
from threading import BrokenBarrierError
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


class DoesNotFitError(Exception):
    """So many proxies are more than the machine holds."""


def main() -> None:
    """Measures every number of proxies both ways, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="nano", choices=list(GEOMETRY))
    parser.add_argument("--stacked", type=int, nargs="*", default=[1, 8, 64, 512])
    parser.add_argument("--processes", type=int, nargs="*", help="as many as --stacked, unless given")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--start-timeout", type=float, default=900.0, help="seconds for all processes to be ready")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    most = (os.cpu_count() or 1) if arguments.device == "cpu" else max(arguments.stacked, default=0)
    processes = [number for number in arguments.stacked if number <= most] if arguments.processes is None else arguments.processes
    place = (arguments.device, arguments.preset, arguments.seconds)
    ways = {
        "stacked": (arguments.stacked, lambda number: stacked_rate(number, *place)),
        "processes": (processes, lambda number: process_rate(number, *place, arguments.start_timeout)),
    }
    rates: dict[str, dict[int, list[float]]] = {way: {} for way in ways}
    unfit: dict[str, dict[int, str]] = {way: {} for way in ways}
    for _ in range(arguments.rounds):
        for way, (numbers, measure) in ways.items():
            for number in (number for number in numbers if number not in unfit[way]):
                try:
                    rates[way].setdefault(number, []).append(measure(number))
                    print(f"{way:10s} {number:4d}: {rates[way][number][-1]:9.1f} stages/s", flush=True)
                except DoesNotFitError as error:
                    unfit[way][number] = str(error)
                    print(f"{way:10s} {number:4d}: does not fit: {error}", flush=True)
    best = {way: {number: max(values) for number, values in measured.items() if values} for way, measured in rates.items()}
    result = {
        "benchmark": "stacked_proxies",
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.machine(),
        "preset": arguments.preset,
        "torch": torch.__version__,
        "stages_per_second": rates,
        "does_not_fit": unfit,
        "stacked_over_processes": {number: best["stacked"][number] / rate for number, rate in best["processes"].items() if number in best["stacked"]},
        "best_stacked_over_best_processes": _best(best["stacked"]) / _best(best["processes"]) if best["processes"] else None,
    }
    print(json.dumps(result))


def _best(rates: dict[int, float]) -> float:
    return max(rates.values(), default=0.0)


def stacked_rate(num_proxies: int, device: str, preset: str, seconds: float, start: Any = None) -> float:
    """Stages a second of `num_proxies` replicas in this process, after a warm-up of one stage.

    Args:
        num_proxies: side by side.
        device: `cuda` or `cpu`.
        preset: key of GEOMETRY.
        seconds: to measure for.
        start: called before, to wait for others.

    Raises:
        DoesNotFitError: memory ran out.
    """
    try:
        return _rate(num_proxies, device, preset, seconds, start)
    except RuntimeError as error:  # CUDA says it in several classes, of which this is the parent.
        if "out of memory" not in str(error).lower() and "can't allocate memory" not in str(error).lower():
            raise
        raise DoesNotFitError(str(error).splitlines()[0]) from error


def _rate(num_proxies: int, device: str, preset: str, seconds: float, start: Any) -> float:
    model = LeanLlama(_config(preset), num_proxies)
    model.initialise(torch.Generator().manual_seed(0))
    learner = Learner(model.to(torch.device(device)), TUNING)
    plan = [[_batch(replica * STEPS + step) for replica in range(num_proxies)] for step in range(STEPS)]
    probes = {str(index): _split(index) for index in range(PROBES)}
    _stage(learner, plan, probes)
    if start is not None:
        start()
    began, stages = time.perf_counter(), 0
    while (gone := time.perf_counter() - began) < seconds or not stages:
        _stage(learner, plan, probes)  # Ends in a copy to the host, so nothing is still under way.
        stages += num_proxies
    return stages / gone


def process_rate(num_processes: int, device: str, preset: str, seconds: float, start_timeout_s: float) -> float:
    """Stages a second of `num_processes` processes with one proxy each, side by side.

    Raises:
        DoesNotFitError: one ran out of memory or was killed, or not all were ready in time. The others are ended.
        RuntimeError: one failed otherwise.
    """
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(num_processes), context.Queue()
    workers = [context.Process(target=_worker, args=(device, preset, seconds, start_timeout_s, barrier, answers)) for _ in range(num_processes)]
    try:
        for worker in workers:
            worker.start()
        found = _answers(workers, answers, time.monotonic() + start_timeout_s + 10 * seconds + 60.0)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()  # Those that are done are gone; the others wait for one that will not come.
                worker.join()
    return sum(found)


def _answers(workers: list[Any], answers: Any, deadline: float) -> list[float]:
    """Of every worker; a dead one never answers, so its exit code is looked at."""
    found: list[float] = []
    while len(found) < len(workers):
        try:
            kind, answer = answers.get(timeout=1.0)
        except queue.Empty:
            if killed := [worker.exitcode for worker in workers if worker.exitcode]:
                raise DoesNotFitError(f"a process ended with exit code {killed[0]}") from None
            if time.monotonic() > deadline:
                raise DoesNotFitError("not all processes were ready in time") from None
            continue
        if kind == "failed":
            raise RuntimeError(answer)
        if kind == "unfit":
            raise DoesNotFitError(answer)
        found.append(answer)
    return found


def _worker(device: str, preset: str, seconds: float, start_timeout_s: float, barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        answers.put(("rate", stacked_rate(1, device, preset, seconds, lambda: barrier.wait(start_timeout_s))))
    except DoesNotFitError as error:
        answers.put(("unfit", str(error)))
    except BrokenBarrierError:
        answers.put(("unfit", "not all processes were ready in time"))
    except Exception as error:
        answers.put(("failed", f"{type(error).__name__}: {error}"))


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
