"""Is the builtin benchmark worth a controller? Final accuracy against a fixed replay share, without any learnt controller.

    python benchmarks/benchmark_curves.py --config configs/demo.yaml [--model proxy] [key.path=value …]

No replay must lose badly and the best share should lie inside .1 to .5; else a fixed mixture is all anyone needs. Runs are drawn from
the training worlds, so that the benchmark can be fixed without looking at what is held out. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from proxymix.cases import Case, CaseBuilder, draw_cases
from proxymix.config import Config, load_config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.learners.learner import Learner
from proxymix.learners.models import load_model
from proxymix.learners.pretraining import pretrain_base

METHODS = ["no_replay", "random_5", "random_10", "random_20", "random_30", "random_40", "random_50", "random_70", "ramp_10"]


def main() -> None:
    """Runs every method on every case and prints means over cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--model", choices=["proxy", "target"], default="target")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    pretrain_base(config, getattr(config, arguments.model).model, lambda done, total: print(f"\rbase {done}/{total}", end="", flush=True))
    cases = draw_cases(config.controller.curriculum, config.tuning, arguments.cases, seed=10_000 + config.seed, label="curve")
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        rows = list(pool.map(_measure, *zip(*[(config, arguments.model, case) for case in cases], strict=True)))
    table = {method: {key: float(np.mean([row[method][key] for row in rows])) for key in rows[0][method]} for method in METHODS}
    print("\n" + "method".ljust(12) + "".join(key.rjust(10) for key in table[METHODS[0]]))
    for method, values in table.items():
        print(method.ljust(12) + "".join(f"{value:10.3f}" for value in values.values()))
    print(json.dumps({"benchmark": "curves", "model": arguments.model, "cases": len(cases), "table": table}))


def _measure(config: Config, which: str, case: Case) -> dict[str, dict[str, float]]:
    model = getattr(config, which).model
    base = pretrain_base(config, model)
    builder = CaseBuilder(config, base, Learner(load_model(base, "lean"), config.tuning))
    return {method: _score(builder, case, method) for method in METHODS}


def _score(builder: CaseBuilder, case: Case, method: str) -> dict[str, float]:
    run = builder.build(case)
    learnt: dict[str, float] = {}

    class Learnt:
        def stage_finished(self, *_: object) -> None:
            pass

        def task_finished(self, run: object, task_index: int) -> None:
            name = case.tasks[task_index].label
            learnt[name] = builder_run.validation_accuracies()[name]

    builder_run = run
    run_continual(run, baseline(method), Learnt())
    final = run.validation_accuracies()
    tasks = [spec.label for spec in case.tasks]
    forgotten = [learnt[name] - final[name] for name in tasks[:-1]]
    return {
        "J": float(np.mean(list(final.values()))),
        "AA": float(np.mean([final[name] for name in tasks])),
        "NTA": float(np.mean(list(learnt.values()))),
        "BWT": -float(np.mean(forgotten)),
        "general": final["general"],
        "safety": final["safety"],
    }


if __name__ == "__main__":
    main()
