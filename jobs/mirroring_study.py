"""How far does mirroring carry? ρ between models of several sizes at several learning rates, held against its ceiling and its null.

sizes × rates × sequences × seeds → pilots, each once → every pair at every rate → mirroring_study.json, table.md, two plots
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.pilots import PilotRun, accuracy_matrices, compared
from cluster.session import ray_session
from jobs.check_mirroring import as_json
from jobs.entry import launch
from jobs.pretrain_base import preset_bases
from jobs.run import Run
from proxymix.artifacts import write_json, write_text
from proxymix.benchmark_checks import check_study_worlds
from proxymix.cases import Case, draw_cases
from proxymix.config import Config
from proxymix.mirroring import check_mirroring
from proxymix.report.study_plots import plot_study_rho, plot_study_scatter
from proxymix.report.theme import save_png
from proxymix.study_table import study_markdown
from proxymix.tuning_config import ModelConfig

Matrices = Mapping[tuple[str, float], Mapping[tuple[str, int], np.ndarray]]
"""Accuracy matrices by (size, rate), then by (sequence, seed)."""


def study_cases(config: Config) -> list[Case]:
    """The pilot sequences, the same for every size and rate.

    Raises:
        UserError: of a world of the benchmark's table, or one that base models have seen.
    """
    study = config.mirroring_study
    check_study_worlds(config, "mirroring_study.worlds", study.worlds)
    curriculum = config.controller.curriculum.model_copy(update={"worlds": study.worlds, "pool": None})
    return draw_cases(curriculum, config.tuning, study.num_sequences, config.seed, label="study")


def at_scale(config: Config, size: str, rate: float) -> Config:
    """`config` with `size` for the proxy, tuned at `rate` times the learning rate. Every size goes through the proxy's lean code."""
    tuning = config.tuning.model_copy(update={"learning_rate": rate * config.tuning.learning_rate})
    proxy = config.proxy.model_copy(update={"model": ModelConfig.model_validate({"preset": size})})
    return config.model_copy(update={"tuning": tuning, "proxy": proxy})


def mirroring_study(run: Run) -> dict[str, Any]:
    """Pilots, then one result a pair and rate; written under `mirroring_study/`."""
    config, study = run.config, run.config.mirroring_study
    cases = study_cases(config)
    with run.phase("mirroring_study"):
        matrices = _pilots(run, _bases(run), cases)
        results = []
        for pair in study.pairs:
            for rate in study.rates:
                both = {key: (matrices[pair[0], rate][key], matrices[pair[1], rate][key]) for key in matrices[pair[0], rate]}
                pilots = compared(both, len(config.sequence.anchors))
                result = check_mirroring(pilots, np.random.default_rng(config.seed))
                facts = {"proxy": pair[0], "target": pair[1], "rate": rate, "learning_rate": rate * config.tuning.learning_rate}
                results.append({**facts, **as_json(result, pilots)})
        found = {"replay_share": config.transfer.replay_share, "sequences": _described(cases), "num_seeds": study.num_seeds, "results": results}
        folder = run.folder / "mirroring_study"
        write_json(folder / "mirroring_study.json", found)
        write_text(folder / "table.md", study_markdown(found))
        save_png(plot_study_rho(found), folder / "rho.png")
        save_png(plot_study_scatter(found), folder / "scatter.png")
    return found


def _bases(run: Run) -> dict[str, str]:
    """Folder of every size's base."""
    sizes = run.config.mirroring_study.sizes
    return dict(zip(sizes, preset_bases(run, [ModelConfig(preset=size) for size in sizes], "proxy", "base models"), strict=True))


def _pilots(run: Run, bases: Mapping[str, str], cases: Sequence[Case]) -> Matrices:
    config, study = run.config, run.config.mirroring_study
    places = [(case, seed) for case in cases for seed in range(study.num_seeds)]
    scales = [(size, rate) for size in study.sizes for rate in study.rates]
    runs = [
        PilotRun(
            at_scale(config, size, rate), "proxy", bases[size], replace(case, seed=case.seed + seed), f"{size}/rate{rate:g}/{case.name}/seed{seed}"
        )
        for size, rate in scales
        for case, seed in places
    ]
    with run.progress("study pilots") as update:
        found = iter(accuracy_matrices(config, runs, run.account, update))
    return {scale: {(case.name, seed): next(found) for case, seed in places} for scale in scales}


def _described(cases: Sequence[Case]) -> dict[str, Any]:
    return {
        case.name: {"tasks": [f"{t.label}@{t.world}" for t in case.tasks], "steps_per_stage": list(case.steps_per_stage), "seed": case.seed}
        for case in cases
    }


def job(run: Run) -> None:
    """Stand-alone: bases, pilots, results."""
    with ray_session(run.config):
        mirroring_study(run)
    print(Path(run.folder / "mirroring_study" / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    launch(job)
