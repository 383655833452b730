"""Work that is one Ray task a piece: base models and mirroring pilots, side by side on whatever cores there are.

(model, model) → pretrain_bases → folders          cases × seeds × (proxy, target) → run_pilots → Pilots, kept by content
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from cluster.case_keys import case_key
from cluster.pilot import Role, pilot, pilot_together
from cluster.session import this_cluster
from cluster.tasks import on_gpus, run_cached_tasks, run_tasks
from proxymix.account import Account, Cost
from proxymix.cases import Case
from proxymix.config import Config, ModelConfig
from proxymix.learners.pretraining import base_folder, is_ready, pretrain_base
from proxymix.metrics import relative_forgetting
from proxymix.mirroring import Pilot
from proxymix.planning.gpus import gpus_of

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
ROLES: tuple[Role, Role] = ("proxy", "target")


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
    role: Role
    folder: str
    """Base of the model."""
    case: Case
    """With the seed of its data stream."""
    id: str
    """In the account."""

    @property
    def takes_all_workers(self) -> bool:
        """Whether the model is the target, and more than one worker can hold or compute."""
        return self.role == "target" and self.config.target.parallelism.pilots_together


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
        config: says where results are kept, and how many runs go on at once: one where a pilot takes all of the target's workers.
        runs: each gets a line in `account`.
        account: of the run.
        progress: called as pilots finish.
    """
    keys = [case_key(run.config, run.role, run.folder, run.case, run.config.transfer.replay_share) for run in runs]
    submissions = [_submission(run) for run in runs]

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        account.add("pilot", runs[index].id, runs[index].role, Cost(**result["cost"]), cached=cached)

    at_once = 1 if any(run.takes_all_workers for run in runs) else max(1, config.controller.num_env_runners)
    results = run_cached_tasks(Path(config.cache_root) / "pilots", keys, submissions, at_once, progress, note)
    return [np.array(result["matrix"]) for result in results]


def _submission(run: PilotRun) -> Callable[[], ray.ObjectRef]:
    if run.takes_all_workers:
        return partial(pilot_together.options(name=f"pilot/{run.id}", runtime_env=this_cluster()).remote, run.config, run.folder, run.case)
    alone = on_gpus(pilot, gpus_of(run.config, run.role))
    return partial(alone.options(name=f"pilot/{run.id}").remote, run.config, run.role, run.folder, run.case)


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


def _known_pairs(matrices: Sequence[np.ndarray], num_anchors: int, floor: float = 0.2) -> np.ndarray:
    """Which rows of `relative_forgetting` say something about forgetting, bool `[num_pairs]`.

    What was never known cannot be forgotten: its φ is noise over a small number. And before the first task nothing has been forgotten.
    """
    learnt = np.min([np.diag(matrix) for matrix in matrices], axis=0) >= floor
    gaps, tasks, _ = relative_forgetting(matrices[0]).T.astype(int)
    return np.asarray(learnt[tasks] & (tasks + gaps >= num_anchors))
