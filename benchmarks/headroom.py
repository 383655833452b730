"""How much better than any feedback-free rule could a schedule be? Direct search for the best replay share at every stage of one case.

    python benchmarks/headroom.py --config configs/demo.yaml [--cases 4] [--evaluations 160] [key.path=value …]

The cross-entropy method searches one share a stage (uniform split), every candidate on the same base, data stream and seed. Where there is
no headroom no controller can win. Cases come from the training worlds. Prints a line a case and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from proxymix.cases import Case, draw_cases, proxy_builder
from proxymix.config import Config, load_config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline, uniform_decision
from proxymix.learners.pretraining import pretrain_base
from proxymix.reward import final_score
from proxymix.types import Controller, Decision, StageBoundary

RULES = ["random_20", "random_30", "random_40", "random_50", "ramp_10", "ramp_5"]
ELITE = 0.25


class Schedule:
    """A replay share for every stage of the run, whatever happens."""

    name = "schedule"

    def __init__(self, logits: np.ndarray) -> None:
        """Args: `logits` of the shares, `[num_tasks, num_stages]`."""
        self.shares = 1 / (1 + np.exp(-logits))

    def decide(self, boundary: StageBoundary) -> Decision:
        """The share of this stage, split uniformly."""
        return uniform_decision(self.name, boundary, float(self.shares[boundary.task_index, boundary.stage_index]))


def main() -> None:
    """Searches every case and compares with the best rule of that case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--cases", type=int, default=4)
    parser.add_argument("--evaluations", type=int, default=160)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    pretrain_base(config, config.proxy.model)
    cases = draw_cases(config.controller.curriculum, config.tuning, arguments.cases, seed=20_000 + config.seed, label="headroom")
    rows = []
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for row in pool.map(_search, [config] * len(cases), cases, [arguments.evaluations] * len(cases)):
            rows.append(row)
            print(
                f"{row['case']}: best rule {row['rule']} J {row['rule_score']:.3f}, searched {row['searched_score']:.3f}, tasks {row['tasks']}",
                flush=True,
            )
            print("    shares " + " | ".join(" ".join(f"{share:.2f}" for share in task) for task in row["shares"]))
    gains = [row["searched_score"] - row["rule_score"] for row in rows]
    print(json.dumps({"benchmark": "headroom", "evaluations": arguments.evaluations, "mean_gain": float(np.mean(gains)), "rows": rows}))


def _search(config: Config, case: Case, evaluations: int) -> dict[str, object]:
    builder = proxy_builder(config, pretrain_base(config, config.proxy.model))

    def score(controller: Controller) -> float:
        run = builder.build(case)
        run_continual(run, controller)
        return final_score(run.validation_accuracies())

    rules = {rule: score(baseline(rule)) for rule in RULES}
    best_rule = max(rules, key=lambda rule: rules[rule])
    rng, population = np.random.default_rng(case.seed), 20
    mean, spread = np.full((len(case.tasks), config.tuning.stages_per_task), -0.7), 1.0
    best_score, best_logits = -1.0, mean
    for _ in range(evaluations // population):
        candidates = mean + spread * rng.normal(size=(population, *mean.shape))
        scores = np.array([score(Schedule(candidate)) for candidate in candidates])
        elite = candidates[np.argsort(-scores)[: int(ELITE * population)]]
        mean, spread = elite.mean(axis=0), max(0.3, 0.85 * spread)
        if scores.max() > best_score:
            best_score, best_logits = float(scores.max()), candidates[scores.argmax()]
    return {
        "case": case.name,
        "tasks": [task.label for task in case.tasks],
        "rule": best_rule,
        "rule_score": rules[best_rule],
        "rules": rules,
        "searched_score": max(best_score, score(Schedule(mean))),
        "shares": (1 / (1 + np.exp(-best_logits))).round(2).tolist(),
    }


if __name__ == "__main__":
    main()
