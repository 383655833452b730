"""The share of a stage that validation and decision take, with few and many sources, reading all of them or within the budget.

    python benchmarks/decision_cost.py --config configs/demo.yaml [--side-by-side 8] [--repeats 15] [key.path=value …]

The last task of a long sequence is measured, again and again from where it begins; the tasks before it are tuned one step a stage, only to make
their sources visible. Proxies are tuned side by side as they are when a controller is learnt, and alone (`--side-by-side 1`); times are a proxy's
share. The policy is the untrained one (a learnt one costs the same), asked in this process by one proxy after another. Prints a line per number of
sources and one JSON line: medians over repeats, and the range of the share. All is processor time of this one thread, which other work on the
machine stretches less and evenly; alone on it, it is the time that goes by.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import product
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from proxymix import continual
from proxymix.cases import Case, CaseBuilder, proxy_builder
from proxymix.config import Config, SourceConfig, load_config
from proxymix.continual import advance_together
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.data.builtin import TASK_TYPES
from proxymix.learners.pretraining import pretrain_base

NUM_SOURCES = (4, 16, 64)
PHASES = ("train", "validate", "decide")
Seconds = dict[str, float]
"""A proxy's share of a stage, by phase."""


def main() -> None:
    """Measures both ways of reading in turn, so that whatever else the machine does hits both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--side-by-side", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.overrides)
    folder = pretrain_base(config, config.proxy.model)
    everything = config.model_copy(update={"tuning": config.tuning.model_copy(update={"probes_per_boundary": max(NUM_SOURCES)})})
    together = arguments.side_by_side
    builders = {"all": proxy_builder(everything, folder, together), "budget": proxy_builder(config, folder, together)}
    continual.time = SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    table: dict[int, dict[str, Any]] = {}
    for num_sources in NUM_SOURCES:
        tasks = {reading: LastTask(builder, num_sources, together) for reading, builder in builders.items()}
        seconds: dict[str, list[Seconds]] = {reading: [] for reading in builders}
        for _ in range(arguments.repeats):
            for reading, task in tasks.items():
                seconds[reading].append(task.tune())
        table[num_sources] = {reading: _costs(rows) for reading, rows in seconds.items()}
        for reading, costs in table[num_sources].items():
            print(f"{num_sources:3d} sources, {reading:7s}" + "".join(f"  {key} {value}" for key, value in costs.items()), flush=True)
    settings = {"probe_budget": config.tuning.probe_budget, "side_by_side": together, "repeats": arguments.repeats}
    print(json.dumps({"benchmark": "decision_cost", **settings, "table": table}))


class LastTask:
    """Proxies side by side, about to begin the one task in which `num_sources` are visible."""

    def __init__(self, builder: CaseBuilder, num_sources: int, together: int) -> None:
        """Goes through all tasks before it."""
        settings, self.learner = builder.config.controller, builder.learner
        case = many_tasks(builder.config, num_sources - len(builder.config.sequence.anchors))
        parameters = initial_parameters(settings.architecture, settings.hidden_units, num_sources, np.random.default_rng(0))
        self.controller = FrozenController(build_policy(settings.architecture, parameters), {"name": "untrained"})
        self.runs = [builder.build(case) for _ in range(together)]
        while self.runs[0].task_index < len(case.tasks) - 1:
            self._advance()
        self.weights = {name: tensor.clone() for name, tensor in self.learner.state_dict().items()}
        self.states = [run.state_dict() for run in self.runs]

    def tune(self) -> Seconds:
        """The task, from its beginning; medians over its stages."""
        self.learner.load_state_dict(self.weights)
        for run, state in zip(self.runs, self.states, strict=True):
            run.load_state_dict(state)
        stages = []
        while not self.runs[0].done:
            stages.append(self._advance())
        return {phase: float(np.median([stage[phase] for stage in stages])) for phase in PHASES}

    def _advance(self) -> Seconds:
        began = time.process_time()
        decisions = [self.controller.decide(run.observe()) for run in self.runs]
        decided = (time.process_time() - began) / len(self.runs)
        return {**advance_together(self.runs, decisions)[0].seconds, "decide": decided}


def many_tasks(config: Config, num_tasks: int) -> Case:
    """Every task type of training world after training world; only the last task has stages of full length."""
    specs = [
        SourceConfig(format="builtin", name=f"{task}@train-{world}", task=task, world=f"train-{world}")
        for world, task in product(range(-(-num_tasks // len(TASK_TYPES))), TASK_TYPES)
    ]
    return Case("many", tuple(specs[:num_tasks]), (*[1] * (num_tasks - 1), config.tuning.steps_per_stage), seed=1)


def _costs(repeats: list[Seconds]) -> dict[str, Any]:
    """Milliseconds a stage by phase (medians), and the share of validation and decision in their sum."""
    shares = [1 - each["train"] / sum(each.values()) for each in repeats]
    milliseconds = {phase: round(1e3 * float(np.median([each[phase] for each in repeats])), 3) for phase in PHASES}
    share = {"median": float(np.median(shares)), "min": min(shares), "max": max(shares)}
    return {**milliseconds, "share": {name: round(value, 4) for name, value in share.items()}}


if __name__ == "__main__":
    main()
