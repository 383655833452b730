"""What does ASHA save? The same configurations swept with early stopping and all to their end: proxy runs, FLOPs, and who wins.

    python benchmarks/sweep_savings.py --config configs/demo.yaml [--trials 8] [key.path=value …]

Random search with one seed proposes the same configurations to both. The full sweep goes on from what ASHA left, so both together take no longer
than the full one; costs are counted as if each had run alone. By default trainings of 64 episodes of three tasks; overrides come on top. Run
it again and it goes on from where it stopped, unless settings or code have changed. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import replace

import numpy as np
from scipy.stats import bootstrap

from cluster.pilots import pretrain_bases
from cluster.reference_runs import with_references
from cluster.session import ray_session
from cluster.sweep import run_sweep
from cluster.sweep_trial import SweepPlan
from proxymix.account import Account
from proxymix.cases import draw_cases
from proxymix.config import Config, load_config, validated
from proxymix.data.fingerprints import content_key, file_facts
from proxymix.sweep_result import best_trial
from proxymix.sweep_space import check_sweep, validation_cases

ROOT = Path(__file__).parent.parent
SMALL = [
    *("controller.episodes=64", "controller.episodes_per_iteration=8", "sweep.episodes_per_rung=16", "sweep.search=random"),
    *("controller.curriculum.num_tasks=3", "sweep.reduction_factor=2", "sweep.validation.num_cases=6"),
]


def main() -> None:
    """Runs both sweeps and compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [*SMALL, f"sweep.num_trials={arguments.trials}", *arguments.overrides])
    tree = config.model_dump(mode="json")
    plans = {}
    with ray_session(config):
        plan = prepared(validated(tree | {"cache_root": str(Path(config.cache_root).resolve())}, arguments.config))
        for scheduler in ("asha", "none"):
            sweep = config.sweep.model_copy(update={"scheduler": scheduler})
            plans[scheduler] = replace(plan, config=plan.config.model_copy(update={"sweep": sweep}), tune_folder=f"tune-{scheduler}")
        asha, full = (summary(run_sweep(plans[scheduler])) for scheduler in ("asha", "none"))
    ratios = {f"{key}_ratio": round(full[key] / asha[key], 3) for key in ("episodes", "flops")}
    # Of the two winners on the same validation cases.
    differences = np.subtract(asha.pop("best_scores"), full.pop("best_scores"))
    equal = not differences.any()
    interval = [0.0, 0.0] if equal else list(bootstrap((differences,), np.mean, rng=np.random.default_rng(0)).confidence_interval)
    difference = {"mean": round(float(differences.mean()), 5), "interval_95": [round(float(end), 5) for end in interval]}
    # Only where a number stands for one configuration may its scores be compared.
    facts = {"benchmark": "sweep_savings", "trials": config.sweep.num_trials, "same_configurations": asha["overrides"] == full["overrides"]}
    print(json.dumps({**facts, "asha": asha, "full": full, **ratios, "best_score_difference": difference}))


def prepared(config: Config) -> SweepPlan:
    """Base model, cases and their references."""
    check_sweep(config)
    code = file_facts(path for package in ("proxymix", "cluster") for path in (ROOT / package).rglob("*.py"))
    folder = config.run_dir.resolve() / f"sweep_savings-{content_key([config.model_dump(mode='json'), code])[:8]}"
    (base,), _ = pretrain_bases(config, [config.proxy.model], lambda done, total: None)
    cases = draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, config.seed)
    references = with_references(config, base, [*cases, *validation_cases(config)], Account(folder / "costs.jsonl"))
    return SweepPlan(config, base, references[: len(cases)], references[len(cases) :], folder)


def summary(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What a sweep ran and found."""
    ends = [trial["rungs"][-1] for trial in trials]
    best = best_trial(trials)
    return {
        "episodes": sum(end["episodes"] for end in ends),
        "flops": sum(rung["flops"] for trial in trials for rung in trial["rungs"]),
        "best": best["trial"],
        "best_scores": best["rungs"][-1]["validation_scores"],
        "best_score": round(best["rungs"][-1]["validation_score"], 5),
        "overrides": {trial["trial"]: trial["overrides"] for trial in trials},
        "scores": {trial["trial"]: [round(rung["validation_score"], 4) for rung in trial["rungs"]] for trial in trials},
    }


if __name__ == "__main__":
    main()
