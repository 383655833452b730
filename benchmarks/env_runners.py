"""What a second env runner is worth: the same iterations of PPO sampled by one and by two, in turn.

    python benchmarks/env_runners.py --config configs/demo.yaml [--iterations 6] [key.path=value …]

Both algorithms stay alive; a runner that waits costs nothing. Prints a line an iteration and one JSON line with the ratio of the medians
and its spread. The goal is 1.85 on two cores that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import numpy as np
import torch

from cluster.episodic_ppo import EpisodePlan, EpisodicPPO, build_algorithm
from cluster.session import ray_session
from proxymix.cases import draw_cases
from proxymix.config import Config, load_config
from proxymix.env import ParallelTuningEnv
from proxymix.learners.pretraining import pretrain_base

NUM_RUNNERS = (1, 2)


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
            _sample_seconds(algorithm, config, 0)
        seconds: dict[int, list[float]] = {number: [] for number in NUM_RUNNERS}
        for iteration in range(1, arguments.iterations + 1):
            for number, algorithm in algorithms.items():
                seconds[number].append(_sample_seconds(algorithm, config, iteration))
            print(f"iteration {iteration}: " + ", ".join(f"{number} runners {seconds[number][-1]:.2f} s" for number in NUM_RUNNERS), flush=True)
        for algorithm in algorithms.values():
            algorithm.stop()
    ratios = np.divide(seconds[1], seconds[2])
    result = {
        "benchmark": "env_runners",
        "speedup": float(np.median(ratios)),
        "range": [float(ratios.min()), float(ratios.max())],
        "seconds": {str(number): float(np.median(values)) for number, values in seconds.items()},
        "episodes": config.controller.episodes_per_iteration,
        "side_by_side": config.group_size,
    }
    print(json.dumps(result))


def _algorithm(config: Config, folder: str, num_runners: int) -> EpisodicPPO:
    controller = config.controller.model_copy(update={"num_env_runners": num_runners})
    config = config.model_copy(update={"controller": controller})
    cases = draw_cases(controller.curriculum, config.tuning, 1, config.seed)
    return build_algorithm(config, partial(ParallelTuningEnv, config, folder, cases))


def _sample_seconds(algorithm: EpisodicPPO, config: Config, iteration: int) -> float:
    seeds = tuple((config.seed, iteration, episode) for episode in range(config.controller.episodes_per_iteration))
    algorithm.plan = EpisodePlan(iteration, 0, seeds, config.group_size)
    algorithm.train()
    return algorithm.outcome.sample_seconds


if __name__ == "__main__":
    main()
