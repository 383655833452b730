"""The share of a stage that validation and decision take, with few and many sources, reading all of them or within the budget.

    python benchmarks/decision_cost.py --config configs/demo.yaml [--repeats 5] [key.path=value …]

The last task of a long sequence is measured; the tasks before it are tuned one step a stage, only to make their sources visible. The policy
is the untrained one (a learnt one costs the same), in this process. Prints a line per number of sources and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from proxymix.cases import Case, CaseBuilder, proxy_builder
from proxymix.config import Config, SourceConfig, load_config
from proxymix.continual import run_continual
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.data.builtin import TASK_TYPES
from proxymix.learners.pretraining import pretrain_base
from proxymix.types import StageRecord

NUM_SOURCES = (4, 16, 64)


def main() -> None:
    """Measures both ways of reading in turn, so that whatever else the machine does hits both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.overrides)
    folder = pretrain_base(config, config.proxy.model)
    everything = config.model_copy(update={"tuning": config.tuning.model_copy(update={"probes_per_boundary": max(NUM_SOURCES)})})
    builders = {"all": proxy_builder(everything, folder), "budget": proxy_builder(config, folder)}
    table: dict[int, dict[str, dict[str, float]]] = {}
    for num_sources in NUM_SOURCES:
        records: dict[str, list[StageRecord]] = {reading: [] for reading in builders}
        for _ in range(arguments.repeats):
            for reading, builder in builders.items():
                records[reading] += last_task(builder, num_sources)
        table[num_sources] = {reading: _costs(rows) for reading, rows in records.items()}
        for reading, costs in table[num_sources].items():
            print(f"{num_sources:3d} sources, {reading:7s}" + "".join(f"  {key} {value:8.3f}" for key, value in costs.items()), flush=True)
    print(json.dumps({"benchmark": "decision_cost", "probe_budget": config.tuning.probe_budget, "repeats": arguments.repeats, "table": table}))


def last_task(builder: CaseBuilder, num_sources: int) -> list[StageRecord]:
    """The stages in which `num_sources` are visible."""
    config = builder.config
    case = many_tasks(config, num_sources - len(config.sequence.anchors))
    controller = config.controller
    parameters = initial_parameters(controller.architecture, controller.hidden_units, num_sources, np.random.default_rng(0))
    untrained = FrozenController(build_policy(controller.architecture, parameters), {"name": "untrained"})
    return run_continual(builder.build(case), untrained)[-config.tuning.stages_per_task :]


def many_tasks(config: Config, num_tasks: int) -> Case:
    """Every task type of training world after training world; only the last task has stages of full length."""
    specs = [
        SourceConfig(format="builtin", name=f"{task}@train-{world}", task=task, world=f"train-{world}")
        for world, task in product(range(-(-num_tasks // len(TASK_TYPES))), TASK_TYPES)
    ]
    return Case("many", tuple(specs[:num_tasks]), (*[1] * (num_tasks - 1), config.tuning.steps_per_stage), seed=1)


def _costs(records: list[StageRecord]) -> dict[str, float]:
    """Milliseconds a stage by phase (medians), and the share of validation and decision in their sum."""
    milliseconds = {phase: 1e3 * float(np.median([record.seconds[phase] for record in records])) for phase in ("train", "validate", "decide")}
    return {**milliseconds, "share": (milliseconds["validate"] + milliseconds["decide"]) / sum(milliseconds.values())}


if __name__ == "__main__":
    main()
