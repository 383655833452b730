"""Work that is one Ray task a piece: base models and mirroring pilots, side by side on whatever cores there are.

(model, model) → pretrain_bases → folders          cases × seeds × (proxy, target) → run_pilots → Pilots, kept by content
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch

from cluster.case_keys import case_key
from cluster.tasks import kept_builder, on_gpus, run_cached_tasks, run_tasks
from cluster.tuning import target_builder
from proxymix.account import Account, Cost, Meter
from proxymix.cases import Case, proxy_builder
from proxymix.config import Config, ModelConfig
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.learners.pretraining import base_folder, is_ready, pretrain_base
from proxymix.metrics import relative_forgetting
from proxymix.mirroring import Pilot
from proxymix.planning.gpus import gpus_of
from proxymix.types import StageRecord

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
ROLES: tuple[Literal["proxy"], Literal["target"]] = ("proxy", "target")


@ray.remote(num_cpus=0)
class Tally:
    """Progress of tasks that run elsewhere."""

    def __init__(self) -> None:
        """Nothing done yet."""
        self.parts: dict[str, tuple[int, int]] = {}

    def update(self, part: str, done: int, total: int) -> None:
        """Part `part` is so far."""
        self.parts[part] = (done, total)

    def read(self) -> tuple[int, int]:
        """Sums over the parts."""
        return sum(d for d, _ in self.parts.values()), sum(t for _, t in self.parts.values())


def pretrain_bases(config: Config, models: Sequence[ModelConfig], progress: Progress) -> tuple[list[str], set[str]]:
    """Folders of the base models, in order, and which of them were trained now; equal ones are trained once."""
    folders = [base_folder(config, model) for model in models]
    missing = {folder: model for folder, model in zip(folders, models, strict=True) if not is_ready(model, folder)}
    if missing:
        names = {folder: f"pretrain/{Path(folder).name}" for folder in missing}
        tally = Tally.options(name=" + ".join(names.values())).remote()
        submissions = [partial(_pretrain.options(name=names[folder]).remote, config, model, tally, folder) for folder, model in missing.items()]
        run_tasks(submissions, len(submissions), lambda *_: progress(*ray.get(tally.read.remote())))
    return folders, set(missing)


@ray.remote(num_cpus=1, max_retries=2)
def _pretrain(config: Config, model: ModelConfig, tally: ray.actor.ActorHandle, part: str) -> str:
    torch.set_num_threads(1)
    return pretrain_base(config, model, lambda done, total: tally.update.remote(part, done, total))


@dataclass(frozen=True)
class PilotRun:
    """One model's way through one case."""

    config: Config
    role: Literal["proxy", "target"]
    folder: str
    """Base of the model."""
    case: Case
    """With the seed of its data stream."""
    id: str
    """In the account."""


def run_pilots(config: Config, folders: tuple[str, str], cases: Sequence[Case], account: Account, progress: Progress) -> list[Pilot]:
    """Proxy and target through the same cases and seeds with uniform replay.

    Args:
        config: of the run.
        folders: proxy's and target's base.
        cases: pilot sequences; each is run with `transfer.num_seeds` data streams.
        account: gets a line a pilot and model.
        progress: called as pilots finish.

    Returns:
        One Pilot per (case, seed).
    """
    plan = [(case, seed) for case in cases for seed in range(config.transfer.num_seeds)]
    runs = [
        PilotRun(config, role, folder, replace(case, seed=case.seed + seed), f"{case.name}/seed{seed}/{role}")
        for case, seed in plan
        for role, folder in zip(ROLES, folders, strict=True)
    ]
    matrices = iter(accuracy_matrices(config, runs, account, progress))
    found = {(case.name, seed): (next(matrices), next(matrices)) for case, seed in plan}
    return compared(found, len(config.sequence.anchors))


def accuracy_matrices(config: Config, runs: Sequence[PilotRun], account: Account, progress: Progress) -> list[np.ndarray]:
    """Validation accuracies of every run, `[A + T, A + T]`; a pilot that anyone has made is not run again.

    Args:
        config: says where results are kept, and how many runs go on at once.
        runs: each gets a line in `account`.
        account: of the run.
        progress: called as pilots finish.
    """
    keys = [case_key(run.config, run.role, run.folder, run.case, run.config.transfer.replay_share) for run in runs]
    submissions = [_submission(run) for run in runs]

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        account.add("pilot", runs[index].id, runs[index].role, Cost(**result["cost"]), cached=cached)

    at_once = max(1, config.controller.num_env_runners)
    results = run_cached_tasks(Path(config.cache_root) / "pilots", keys, submissions, at_once, progress, note)
    return [np.array(result["matrix"]) for result in results]


def _submission(run: PilotRun) -> Callable[[], ray.ObjectRef]:
    which = ROLES.index(run.role)
    pilot = on_gpus(_pilot, gpus_of(run.config, run.role))
    return partial(pilot.options(name=f"pilot/{run.id}").remote, run.config, which, run.folder, run.case)


def compared(matrices: Mapping[tuple[str, int], tuple[np.ndarray, np.ndarray]], num_anchors: int) -> list[Pilot]:
    """φ of both models on the same pairs, which are the same for all seeds of a sequence, so that seeds can be compared with each other.

    Args:
        matrices: of (proxy, target), by sequence and seed.
        num_anchors: A of their sizes.
    """
    pilots = []
    for (name, seed), both in matrices.items():
        known = _known_pairs([matrix for key, pair in matrices.items() if key[0] == name for matrix in pair], num_anchors)
        proxy, target = (relative_forgetting(matrix)[known] for matrix in both)
        pilots.append(Pilot(name, seed, proxy[:, 2], target[:, 2], gaps=proxy[:, 0], tasks=proxy[:, 1]))
    return pilots


@ray.remote(num_cpus=1, max_retries=2)
def _pilot(config: Config, which: int, folder: str, case: Case) -> dict[str, Any]:
    """The accuracy matrix of one model on one case, and its cost."""
    builder = kept_builder((proxy_builder, target_builder)[which], config.model_dump_json(), folder)
    meter = Meter(gpus_of(config, ROLES[which]))
    run = builder.build(case)
    rows = _AccuracyRows(run)
    run_continual(run, UniformReplay(config.transfer.replay_share), rows)
    return {"matrix": rows.matrix().tolist(), "cost": asdict(meter.read(run.flops))}


@dataclass
class _AccuracyRows:
    """A journal that keeps validation accuracies: first of the base model, then after every task."""

    run: ContinualRun

    def __post_init__(self) -> None:
        self.rows = [self.run.validation_accuracies()]

    def stage_finished(self, run: ContinualRun, record: StageRecord) -> None:
        """Nothing to keep."""

    def task_finished(self, run: ContinualRun, task_index: int) -> None:
        """One more row."""
        self.rows.append(run.validation_accuracies())

    def matrix(self) -> np.ndarray:
        """`[A + T, A + T]`: anchors count as learnt before the first task, so each has a row of the base model."""
        names, anchors = list(self.rows[0]), len(self.run.anchors)
        base, *after = ([row[name] for name in names] for row in self.rows)
        return np.array([base] * anchors + after)


def _known_pairs(matrices: Sequence[np.ndarray], num_anchors: int, floor: float = 0.2) -> np.ndarray:
    """Which rows of `relative_forgetting` say something about forgetting, bool `[num_pairs]`.

    What was never known cannot be forgotten: its φ is noise over a small number. And before the first task nothing has been forgotten.
    """
    learnt = np.min([np.diag(matrix) for matrix in matrices], axis=0) >= floor
    gaps, tasks, _ = relative_forgetting(matrices[0]).T.astype(int)
    return np.asarray(learnt[tasks] & (tasks + gaps >= num_anchors))
