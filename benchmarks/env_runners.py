"""What a second env runner is worth: the same iterations of PPO sampled by one and by two, in turn.

    python benchmarks/env_runners.py --config configs/demo.yaml [--iterations 6] [key.path=value …]

Both algorithms stay alive; a runner that waits costs next to nothing. Prints a line an iteration and one JSON line: the ratio of one runner's seconds
to two's, median and range over the iterations, for sampling and for the whole iteration (learning is the driver's alone); and what sampling
lacks to a ratio of 2, `lost`, as shares of two runners' time that add up to 1 − ratio / 2. The goal is 1.85 on two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from cluster.episodic_ppo import EpisodicPPO, Outcome, build_algorithm
from cluster.policy_training import plan_iteration
from cluster.session import ray_session
from proxymix.cases import Case, draw_cases
from proxymix.config import Config, load_config
from proxymix.env import ParallelTuningEnv
from proxymix.learners.pretraining import pretrain_base

NUM_RUNNERS = (1, 2)
Iteration = tuple[float, Outcome]
"""Seconds of all of it, and what became of it."""


def main() -> None:
    """Samples the same plans with each number of runners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.overrides)
    folder = pretrain_base(config, config.proxy.model)
    with ray_session(config):
        algorithms = {number: _algorithm(config, folder, number) for number in NUM_RUNNERS}
        for algorithm in algorithms.values():  # Data are read and encoded in the first iteration.
            _iterate(algorithm, config, 0)
        done: dict[int, list[Iteration]] = {number: [] for number in NUM_RUNNERS}
        for iteration in range(1, arguments.iterations + 1):
            for number in NUM_RUNNERS[:: 1 if iteration % 2 else -1]:
                done[number].append(_iterate(algorithms[number], config, iteration))
            sampling = (f"{number} runners {done[number][-1][1].sample_seconds:.2f} s" for number in NUM_RUNNERS)
            print(f"iteration {iteration}: {', '.join(sampling)}", flush=True)
        for algorithm in algorithms.values():
            algorithm.stop()
    facts = {"benchmark": "env_runners", "episodes": config.controller.episodes_per_iteration, "side_by_side": config.group_size}
    print(json.dumps({**facts, **summary(done[1], done[2])}))


def summary(one: Sequence[Iteration], two: Sequence[Iteration]) -> dict[str, object]:
    """Of the same iterations by one and by two runners."""
    sampling = np.array([[first.sample_seconds, second.sample_seconds] for (_, first), (_, second) in zip(one, two, strict=True)])
    whole = np.array([[first, second] for (first, _), (second, _) in zip(one, two, strict=True)])
    lost = [_lost(first, second) for (_, first), (_, second) in zip(one, two, strict=True)]
    return {
        "speedup": _ratio(sampling),
        "speedup_with_learning": _ratio(whole),
        "lost": {reason: round(float(np.mean([shares[reason] for shares in lost])), 4) for reason in lost[0]},
        "sample_seconds": dict(zip(("1", "2"), np.median(sampling, axis=0).round(3).tolist(), strict=True)),
        "iteration_seconds": dict(zip(("1", "2"), np.median(whole, axis=0).round(3).tolist(), strict=True)),
    }


def _ratio(seconds: np.ndarray) -> dict[str, object]:
    """Of the columns of `[iterations, 2]`."""
    ratios = seconds[:, 0] / seconds[:, 1]
    return {"median": round(float(np.median(ratios)), 3), "range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)]}


def _lost(one: Outcome, two: Outcome) -> dict[str, float]:
    """Shares of the seconds that two runners took; they add up to 1 − ratio / 2."""
    alone, busy, taken = sum(one.busy_seconds), np.pad(two.busy_seconds, (0, 2 - len(two.busy_seconds))), two.sample_seconds
    return {
        "no runner works": (taken - busy.max() - (one.sample_seconds - alone) / 2) / taken,  # Handing out and collecting, beyond one runner's half.
        "one waits for the slower": (busy.max() - busy.mean()) / taken,
        "slower side by side": (busy.mean() - alone / 2) / taken,  # Ray's own processes, memory, caches.
    }


def _algorithm(config: Config, folder: str, num_runners: int) -> EpisodicPPO:
    controller = config.controller.model_copy(update={"num_env_runners": num_runners})
    config = config.model_copy(update={"controller": controller})
    return build_algorithm(config, partial(ParallelTuningEnv, config, folder, _cases(config)))


def _cases(config: Config) -> list[Case]:
    return draw_cases(config.controller.curriculum, config.tuning, 1, config.seed)


def _iterate(algorithm: EpisodicPPO, config: Config, iteration: int) -> Iteration:
    algorithm.plan = plan_iteration(config, _cases(config), iteration)
    started = time.perf_counter()
    algorithm.train()
    return time.perf_counter() - started, algorithm.outcome


if __name__ == "__main__":
    main()
