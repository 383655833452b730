"""One trial of a sweep: a controller training that is looked at after every rung, on held-out cases, and can be left and taken up anywhere.

    overrides → training_steps … rung done → validate → rungs.jsonl → tune.report(validation_score, checkpoint)

A training lives in `sweep/trainings/<hash of its configuration and of the training it inherits from>/`. Whoever runs the same training again, in
this session or after a kill, finds every finished rung and every finished iteration there. Of several trials that are one training one works at a
time; the others wait, and go on from where it ended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import tune

from cluster.policy_training import Environment, TrainingResult, dropped_cost, training_steps
from cluster.tasks import kept_builder
from proxymix.account import Cost, Meter
from proxymix.artifacts import read_json, read_jsonl, write_json, write_jsonl
from proxymix.cases import Case, proxy_builder
from proxymix.config import Config
from proxymix.continual import run_continual
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.held import HeldDecisions
from proxymix.controllers.policy import build_policy
from proxymix.env import ParallelTuningEnv
from proxymix.episode import unrewarded
from proxymix.errors import UserError
from proxymix.reward import final_score
from proxymix.sweep_space import overrides_of, trial_config

RUNGS, LINEAGE = "rungs.jsonl", "lineage.json"
METRIC = "validation_score"
"""What Tune sees of a rung, schedulers and searchers alike; higher is better."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """A policy on the held-out cases."""

    scores: tuple[float, ...]
    """Per case: J minus the mean J of the references on it."""
    cost: Cost = field(default_factory=lambda: Cost(0))


Validate = Callable[[Config, str, Mapping[str, NDArray[np.float64]], Sequence[Case]], Validation]


def validate_policy(config: Config, base_folder: str, parameters: Mapping[str, NDArray[np.float64]], cases: Sequence[Case]) -> Validation:
    """The policy as it would be frozen, without exploration, through every case; each case knows its reference scores."""
    builder = kept_builder(proxy_builder, config.model_dump_json(), base_folder)
    frozen = {name: value.astype(np.float32) for name, value in parameters.items()}
    settings = config.controller
    policy = build_policy(settings.architecture, frozen, without=settings.without)
    controller = HeldDecisions(FrozenController(policy, {"name": "trial"}), settings.decide_every)
    meter, scores, flops = Meter(config.proxy.gpus_per_runner), [], 0
    for case in cases:
        run = builder.build(case)
        run_continual(run, controller)
        scores.append(final_score(run.validation_accuracies(), unrewarded(settings.reward, run)) - float(np.mean(case.reference_scores)))
        flops += run.flops
    return Validation(tuple(scores), meter.read(flops))


@dataclass(frozen=True)
class SweepPlan:
    """All that trials share."""

    config: Config
    base_folder: str
    cases: tuple[Case, ...]
    """Trained on, with reference scores."""
    validation_cases: tuple[Case, ...]
    """Judged on, with reference scores."""
    folder: Path
    """Of the sweep."""
    environment: Environment = ParallelTuningEnv
    validate: Validate = validate_policy
    tune_folder: str = "tune"
    """Tune's own state, below `folder`; two sweeps that differ in it share their trainings."""

    @property
    def trial_defaults(self) -> Config:
        """Of a trial before anything is swept."""
        return trial_config(self.config, {"controller.num_env_runners": self.config.sweep.num_env_runners})

    @property
    def num_env_runners(self) -> int:
        """That a trial reserves, and asks for; where its own settings leave it fewer groups of episodes it starts fewer."""
        return self.trial_defaults.started_env_runners

    @property
    def num_rungs(self) -> int:
        """Of a trial that runs to its end."""
        return self.config.controller.episodes // self.config.sweep.episodes_per_rung


def run_trial(answers: Mapping[str, Any], plan: SweepPlan) -> None:
    """Tune's trainable. Args: `answers` of the searcher (`proxymix.sweep_space.draw`); `plan` of the sweep."""
    checkpoint = tune.get_checkpoint()
    with checkpoint.as_directory() if checkpoint else nullcontext() as given:
        _train(plan, overrides_of(answers), Path(given) if given else None)


def _train(plan: SweepPlan, overrides: Row, given: Path | None) -> None:
    """From wherever the training stands to its end; Tune stops it earlier by ending this process."""
    config = trial_config(plan.config, {**overrides, "controller.num_env_runners": plan.num_env_runners})
    folder = _training_folder(plan, overrides, given)
    inherited = list(read_jsonl(given / RUNGS)) if given else []
    with _alone_in(folder), closing(training_steps(config, plan.base_folder, plan.cases, folder, plan.environment, given)) as steps:
        rungs = list(read_jsonl(folder / RUNGS)) or inherited
        for rung in rungs[len(inherited) :]:
            _report(rung, folder, rungs)
        for result in steps:
            if result.cost["episodes"] == (len(rungs) + 1) * plan.config.sweep.episodes_per_rung:
                validation = plan.validate(config, plan.base_folder, result.parameters, plan.validation_cases)
                rungs.append(_rung(result, validation, rungs, overrides, folder.name))
                write_jsonl(folder / RUNGS, rungs)
                _report(rungs[-1], folder, rungs)
    if len(rungs) < plan.num_rungs:
        raise UserError(
            f"sweep: the training in {str(folder)!r} must have a validation score of every rung, got {len(rungs)} of {plan.num_rungs} though it is "
            "further; remove that folder"
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits until no other process works on the training: equal configurations are one, and each writes all of its rungs."""
    with (folder / ".lock").open("a") as file:
        with suppress(OSError):  # A file system without locks: then equal ones should not be at work at the same time.
            fcntl.flock(file, fcntl.LOCK_EX)  # Until the file is closed, or the process ends.
        yield


def _training_folder(plan: SweepPlan, overrides: Row, given: Path | None) -> Path:
    """The training's own folder: that of the checkpoint it goes on from, unless other settings make it another training from here on."""
    lineage = read_json(given / LINEAGE) if given else {"overrides": overrides, "parent": None}
    if lineage["overrides"] != overrides:
        assert given is not None, "only a checkpoint has other settings"
        lineage = {"overrides": overrides, "parent": {"training": _digest(lineage), "rung": len(list(read_jsonl(given / RUNGS)))}}
    folder = plan.folder / "trainings" / _digest(lineage)
    write_json(folder / LINEAGE, lineage)
    return folder


def _digest(lineage: Row) -> str:
    return hashlib.sha256(json.dumps(lineage, sort_keys=True).encode()).hexdigest()[:16]


def _rung(result: TrainingResult, validation: Validation, rungs: Sequence[Row], overrides: Row, training: str) -> Row:
    """What is known after a rung. `flops` and `cpu_seconds` are this rung's own, its validation included; what was lost on the way comes on top."""
    before = rungs[-1]["episodes"] if rungs else 0
    fresh = [row for row in result.rows if row["iteration"] * row["episodes"] >= before] or result.rows
    dropped = [dropped_cost(row) for row in fresh]
    return {
        "rung": len(rungs) + 1,
        "episodes": result.cost["episodes"],
        METRIC: float(np.mean(validation.scores)),
        "validation_scores": list(validation.scores),
        "training_return": float(np.mean([row["reward_mean"] for row in fresh])),
        "flops": sum(row["flops"] for row in fresh) + validation.cost.flops,
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in fresh) + validation.cost.cpu_seconds, 3),
        "gpu_seconds": round(sum(row.get("gpu_seconds", 0.0) for row in fresh) + validation.cost.gpu_seconds, 3),
        "num_dropped": sum(row["num_dropped"] for row in fresh),
        "dropped_flops": sum(cost.flops for cost in dropped),
        "dropped_cpu_seconds": round(sum(cost.cpu_seconds for cost in dropped), 3),
        "overrides": overrides,
        "training": training,
    }


def _report(rung: Row, folder: Path, rungs: Sequence[Row]) -> None:
    """Tells Tune. Only the latest rung has a checkpoint, because the folder stands there and not at an earlier one."""
    checkpoint = tune.Checkpoint.from_directory(folder) if rung is rungs[-1] else None
    tune.report({key: rung[key] for key in (METRIC, "rung", "episodes", "training_return", "training")}, checkpoint=checkpoint)
