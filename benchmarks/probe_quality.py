"""What the budget of readings costs in quality: one frozen controller on long sequences, reading 16 rows of every source or within the budget.

    python benchmarks/probe_quality.py --config configs/demo.yaml [--controller runs/demo/controller] [--cases 24] [key.path=value …]

Cases of 14 tasks and the anchors, in worlds that the controller was not trained in and no table uses. Base, order, data stream and seed are
the same for both, so the difference of J is paired. Prints a line a case and one JSON line with the mean difference and its 95 % interval
(bootstrap over cases).
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from scipy.stats import bootstrap

from proxymix.cases import Case, draw_cases, proxy_builder
from proxymix.config import Config, load_config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.controllers.frozen import SHIPPED, FrozenController
from proxymix.learners.pretraining import pretrain_base
from proxymix.reward import final_score
from proxymix.types import Controller

NUM_TASKS = 14
WORLDS = [f"train-{index}" for index in range(10, 16)]


def main() -> None:
    """Runs every case both ways, and under a fixed share as a yardstick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--controller", default=SHIPPED, help="folder of a frozen controller")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    pretrain_base(config, config.proxy.model)
    curriculum = config.controller.curriculum.model_copy(update={"num_tasks": NUM_TASKS, "worlds": WORLDS, "pool": None})
    cases = draw_cases(curriculum, config.tuning, arguments.cases, seed=30_000 + config.seed, label="probe")
    rows = []
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for case, row in zip(cases, pool.map(_measure, *zip(*[(config, arguments.controller, case) for case in cases], strict=True)), strict=True):
            rows.append(row)
            print(case.name.ljust(10) + "".join(f"  {key} {value:.4f}" for key, value in row.items()), flush=True)
    differences = np.array([row["budget"] - row["all"] for row in rows])
    interval = bootstrap((differences,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    result = {
        "benchmark": "probe_quality",
        "cases": len(rows),
        "num_sources": NUM_TASKS + len(config.sequence.anchors),
        "probe_budget": config.tuning.probe_budget,
        "probe_size": config.tuning.probe_size,
        "means": {key: float(np.mean([row[key] for row in rows])) for key in rows[0]},
        "budget_minus_all": float(differences.mean()),
        "interval": [float(interval.low), float(interval.high)],
    }
    print(json.dumps(result))


def _measure(config: Config, folder: str, case: Case) -> dict[str, float]:
    """J by way of reading, and replay shares."""
    controller = FrozenController.load(folder)
    everything = NUM_TASKS + len(config.sequence.anchors)
    return {
        "all": _score(config, case, controller, {"probes_per_boundary": everything, "validation_size": 16}),
        "budget": _score(config, case, controller, {}),
        "random_50": _score(config, case, baseline("random_50"), {}),
    }


def _score(config: Config, case: Case, controller: Controller, reading: dict[str, int]) -> float:
    tuning = config.tuning.model_copy(update=reading)
    read = config.model_copy(update={"tuning": tuning})
    run = proxy_builder(read, pretrain_base(read, read.proxy.model)).build(case)
    run_continual(run, controller)
    return final_score(run.validation_accuracies())


if __name__ == "__main__":
    main()
