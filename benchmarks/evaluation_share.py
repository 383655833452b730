"""What does scoring add to tuning? A target run with evaluation actors at work beside it, and without, in turn, in one Ray session.

    python benchmarks/evaluation_share.py --config configs/smoke.yaml [--rounds 3] [key.path=value …]

Measured from the first decision to the end of the run (fingerprints and models written included, starts of Train and of engines left out). Prints one
JSON line: seconds of both, `added`: median share over rounds with the range, and `cores`. Where actors have cores or GPUs of their own, `added` is
what scoring costs; on fewer cores than workers and actors it shows how they share them, and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import ray

from cluster.evaluation import EvaluationPool
from cluster.tuning import tune_targets
from proxymix.artifacts import target_folder
from proxymix.cases import load_sources
from proxymix.config import Config, load_config
from proxymix.controllers.baselines import baseline
from proxymix.learners.pretraining import pretrain_base
from proxymix.types import Controller, Decision, Source, StageBoundary

METHOD = "random_30"


class Marking:
    """A rule that leaves a file at its first decision."""

    name = METHOD

    def __init__(self, mark: Path) -> None:
        """Args: mark: the file."""
        self.mark, self.rule = mark, baseline(METHOD)

    def decide(self, boundary: StageBoundary) -> Decision:
        """The rule's."""
        if not self.mark.exists():
            self.mark.touch()
        return self.rule.decide(boundary)


def main() -> None:
    """Both ways in turn, so that whatever else the machine does hits both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    base, sources = pretrain_base(config, config.target.model), load_sources(config)
    here = Path(__file__).resolve().parent
    variables = {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}", "OMP_NUM_THREADS": "1"}
    num_cpus = config.evaluation.actors + config.target.parallelism.num_workers + 1
    ray.init(address="local", num_cpus=num_cpus, log_to_driver=False, runtime_env={"env_vars": variables})
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            [seconds_of(config, base, sources, Path(folder, f"{n}{way}"), scored=way) for way in (False, True)] for n in range(arguments.rounds)
        ]
    ray.shutdown()
    added = [scored / alone - 1 for alone, scored in rounds]
    found = {"alone_s": [round(alone, 3) for alone, _ in rounds], "scored_s": [round(scored, 3) for _, scored in rounds]}
    spread = {"median": round(float(np.median(added)), 4), "range": [round(min(added), 4), round(max(added), 4)]}
    facts = {"cores": os.cpu_count(), "workers": config.target.parallelism.num_workers, "actors": config.evaluation.actors}
    print(json.dumps({"benchmark": "evaluation_share", "engine": config.evaluation.engine, **facts, **found, "added": spread}))


def seconds_of(config: Config, base: str, sources: list[Source], run_dir: Path, *, scored: bool) -> float:
    """Of one target run in `run_dir`, from its first decision to its end."""
    tune = partial(tune_targets, config, [(METHOD, 0)], base_folder=base, run_dir=str(run_dir), controller_for=partial(choose, run_dir), name="share")
    if not scored:
        tune()
    else:
        with EvaluationPool(config, base, sources) as pool:
            pool.start(run_dir, [(METHOD, 0)])
            pool.finish()  # The base: engines are there before the first stage, as they are after the controller's training.
            tune()
            pool.finish()
    return (target_folder(run_dir, METHOD, 0) / "done").stat().st_mtime - (run_dir / "began").stat().st_mtime


def choose(run_dir: Path, method: str, seed: int, sha256: str | None) -> Controller:
    """For Train's worker."""
    return Marking(run_dir / "began")


if __name__ == "__main__":
    main()
