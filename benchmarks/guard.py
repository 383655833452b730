"""Whether the guard keeps quiet where proxy and target are alike, and what it saves where they are not.

    python benchmarks/guard.py --config configs/benchmark.yaml target.model.preset=micro [--controller <folder>] [--seeds 3] [key.path=value …]

Calibrated on proxy runs in the training worlds; false alarms are counted on drawn orders of validation worlds, on both models, and on the named
sequences of the held-out world. There, too, the broken sequences are run with the controller unguarded, guarded and replaced by the fallback; and
the healthy ones with a controller that replays nothing, as one would that was learnt where nothing is forgotten. Mirroring pilots say what the check
sees of each sequence. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from cluster.pilots import run_pilots
from cluster.session import ray_session
from cluster.tuning import target_builder
from proxymix.account import Account
from proxymix.cases import Case, CaseBuilder, builtin_source, draw_cases, proxy_builder
from proxymix.config import Config, load_config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.controllers.frozen import SHIPPED, FrozenController
from proxymix.data.builtin import BROKEN_SEQUENCES, SEQUENCES, named_sequence
from proxymix.guard import Guard, GuardedController, fit_guard
from proxymix.learners.pretraining import pretrain_base
from proxymix.mirroring import spearman
from proxymix.reward import final_score
from proxymix.types import Controller, StageBoundary

VALIDATION_CASES = 24
WORLD = "heldout-0"


def main() -> None:
    """Calibrates, counts, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--controller", default=SHIPPED, help="folder of a frozen controller")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(arguments.config, arguments.overrides)
    folders = (pretrain_base(config, config.proxy.model), pretrain_base(config, config.target.model))
    proxy, target = proxy_builder(config, folders[0]), target_builder(config, folders[1])
    controller, fallback = FrozenController.load(arguments.controller), UniformReplay(config.transfer.fallback.replay_share)
    guard = _calibrated(config, proxy, controller)
    drawn = _drawn(config, VALIDATION_CASES, "guard validation", "validation")
    quiet = {name: float(np.mean([_alarmed(guard, _steered(b, case, controller)[0]) for case in drawn])) for name, b in _named(proxy, target)}
    print(f"bound {guard.bound:.2f}; false alarms on {len(drawn)} validation cases {quiet}", flush=True)
    rivals: list[tuple[str, Controller, Sequence[str]]] = [
        ("controller", controller, (*SEQUENCES, *BROKEN_SEQUENCES)),
        ("no_replay", UniformReplay(0.0, "no_replay"), tuple(SEQUENCES)),
    ]
    rows = [_compared(target, guard, name, c, fallback, s, arguments.seeds) for name, c, sequences in rivals for s in sequences]
    mirrored = _mirroring(config, folders, (*SEQUENCES, *BROKEN_SEQUENCES))
    settings = {"controller": controller.sha256, "seeds": arguments.seeds, "guard": guard.to_json()}
    print(json.dumps({"benchmark": "guard", **settings, "validation_alarms": quiet, "mirroring": mirrored, "rows": rows}))


def _named(proxy: CaseBuilder, target: CaseBuilder) -> tuple[tuple[str, CaseBuilder], ...]:
    return (("proxy", proxy), ("target", target))


def _drawn(config: Config, number: int, label: str, kind: str | None = None) -> list[Case]:
    curriculum = config.controller.curriculum
    if kind is not None:
        curriculum = curriculum.model_copy(update={"worlds": [f"{kind}-{index}" for index in range(4)]})
    return draw_cases(curriculum, config.tuning, number, config.seed, label=label)


def _calibrated(config: Config, proxy: CaseBuilder, controller: Controller) -> Guard:
    settings = config.transfer.guard
    runs = [_steered(proxy, case, controller)[0] for case in _drawn(config, settings.num_runs, "guard")]
    rule = {"bound": settings.min_rank_correlation, "false_alarms": settings.false_alarms}
    return fit_guard(runs, window=settings.window, min_readings=settings.min_readings, **rule)


def _steered(builder: CaseBuilder, case: Case, controller: Controller) -> tuple[StageBoundary, float]:
    """The run's last boundary, and its J on validation rows."""
    run = builder.build(case)
    run_continual(run, controller)
    return run.observe(), final_score(run.validation_accuracies())


def _alarmed(guard: Guard, boundary: StageBoundary) -> bool:
    return guard.alarm(boundary) is not None


def _case(config: Config, sequence: str, seed: int) -> Case:
    tasks = tuple(builtin_source(spec) for spec in named_sequence(f"{sequence}@{WORLD}"))
    return Case(sequence, tasks, (config.tuning.steps_per_stage,) * len(tasks), seed)


def _compared(
    target: CaseBuilder, guard: Guard, name: str, controller: Controller, fallback: Controller, sequence: str, seeds: int
) -> dict[str, object]:
    scores: dict[str, list[float]] = {"unguarded": [], "guarded": [], "fallback": []}
    alarms, lowest = [], []
    for seed in range(seeds):
        case = _case(target.config, sequence, seed)
        last, score = _steered(target, case, controller)
        at = [place.rho for place in guard.agreements(last)]
        first = next((index for index, rho in enumerate(at) if rho < guard.bound), None)
        scores["unguarded"].append(score)
        scores["fallback"].append(_steered(target, case, fallback)[1])
        guarded = controller if first is None else GuardedController(controller, guard, fallback)
        scores["guarded"].append(score if first is None else _steered(target, case, guarded)[1])
        alarms.append(None if first is None else len(_stages(last)) - len(at) + first + 1)
        lowest.append(min(at, default=None))
    row = {"steered_by": name, "sequence": sequence, "alarms_after_stage": alarms, "num_stages": len(_stages(last)), "lowest_rho": lowest, **scores}
    means = " ".join(f"{key} {np.mean(values):.3f}" for key, values in scores.items())
    print(f"{name} on {sequence}: {means}; alarms after stage {alarms} of {row['num_stages']}", flush=True)
    return row


def _stages(last: StageBoundary) -> range:
    return range(max(len(source.losses) for source in last.sources) - 1)


def _mirroring(config: Config, folders: tuple[str, str], sequences: Sequence[str]) -> dict[str, float]:
    """ρ of proxy and target pilots (uniform replay) per sequence, mean over seeds."""
    with ray_session(config), tempfile.TemporaryDirectory() as folder:
        pilots = run_pilots(
            config, folders, [_case(config, s, 0) for s in sequences], Account(Path(folder) / "costs.jsonl"), lambda done, total: None
        )
    found: dict[str, list[float]] = {}
    for pilot in pilots:
        found.setdefault(pilot.sequence, []).append(spearman(pilot.proxy, pilot.target))
    print("mirroring", {name: round(float(np.mean(values)), 2) for name, values in found.items()}, flush=True)
    return {name: float(np.mean(values)) for name, values in found.items()}


if __name__ == "__main__":
    main()
