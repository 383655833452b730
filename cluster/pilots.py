"""Work that is one Ray task a piece: base models and mirroring pilots, side by side on whatever cores there are.

(model, model) → pretrain_bases → folders          cases × seeds × (proxy, target) → run_pilots → Pilots, tokens
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import ray
import torch

from cluster.tasks import kept_builder, run_tasks
from cluster.tuning import target_builder
from proxymix.cases import Case, proxy_builder
from proxymix.config import Config, ModelConfig
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.learners.pretraining import base_folder, pretrain_base
from proxymix.metrics import relative_forgetting
from proxymix.mirroring import Pilot
from proxymix.types import StageRecord

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


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


def pretrain_bases(config: Config, models: Sequence[ModelConfig], progress: Progress) -> list[str]:
    """Folders of the base models, in order; those that are cached cost nothing, and equal ones are trained once."""
    tally, folders = Tally.remote(), [base_folder(config, model) for model in models]
    submissions = [partial(_pretrain.remote, config, model, tally, folder) for folder, model in dict(zip(folders, models, strict=True)).items()]
    run_tasks(submissions, len(submissions), lambda *_: progress(*ray.get(tally.read.remote())))
    return folders


@ray.remote(num_cpus=1, max_retries=2)
def _pretrain(config: Config, model: ModelConfig, tally: ray.actor.ActorHandle, part: str) -> str:
    torch.set_num_threads(1)
    return pretrain_base(config, model, lambda done, total: tally.update.remote(part, done, total))


@dataclass(frozen=True)
class PilotTokens:
    """What went through one of the models, over all pilots."""

    num_tokens: int
    """Trained on."""
    num_validation_tokens: int
    """Read: at every boundary, and for the accuracies after every task."""


def run_pilots(
    config: Config, folders: tuple[str, str], cases: Sequence[Case], progress: Progress
) -> tuple[list[Pilot], tuple[PilotTokens, PilotTokens]]:
    """Proxy and target through the same cases and seeds with uniform replay.

    Args:
        config: of the run.
        folders: proxy's and target's base.
        cases: pilot sequences; each is run with `transfer.num_seeds` data streams.
        progress: called as pilots finish.

    Returns:
        One Pilot per (case, seed), and what all of them took of the proxy and of the target.
    """
    plan = [(case, seed) for case in cases for seed in range(config.transfer.num_seeds)]
    keys = [(case, seed, which) for case, seed in plan for which in (0, 1)]
    gpus = (0, int(config.target.parallelism.use_gpu))
    tasks = [_pilot.options(num_gpus=number) for number in gpus]
    submissions = [partial(tasks[which].remote, config, which, folders[which], replace(case, seed=case.seed + seed)) for case, seed, which in keys]
    results = run_tasks(submissions, max(1, config.controller.num_env_runners), progress)
    matrices = {(case.name, seed, which): matrix for (case, seed, which), (matrix, _) in zip(keys, results, strict=True)}
    pilots = []
    for case, seed in plan:
        # The same pairs for every seed of a sequence, so that seeds can be compared with each other.
        known = _known_pairs([matrix for key, matrix in matrices.items() if key[0] == case.name], len(config.sequence.anchors))
        proxy, target = (relative_forgetting(matrices[case.name, seed, which])[known] for which in (0, 1))
        pilots.append(Pilot(case.name, seed, proxy[:, 2], target[:, 2], proxy[:, 0]))
    taken = [[tokens for (*_, model), (_, tokens) in zip(keys, results, strict=True) if model == which] for which in (0, 1)]
    return pilots, (_sum(taken[0]), _sum(taken[1]))


@ray.remote(num_cpus=1, max_retries=2)
def _pilot(config: Config, which: int, folder: str, case: Case) -> tuple[np.ndarray, PilotTokens]:
    run = kept_builder((proxy_builder, target_builder)[which], config.model_dump_json(), folder).build(case)
    rows = _AccuracyRows(run)
    records = run_continual(run, UniformReplay(config.transfer.replay_share), rows)
    trained, read = (sum(getattr(record, name) for record in records) for name in ("num_tokens", "num_validation_tokens"))
    return rows.matrix(), PilotTokens(trained, read + rows.num_tokens)


def _sum(parts: Sequence[PilotTokens]) -> PilotTokens:
    return PilotTokens(sum(part.num_tokens for part in parts), sum(part.num_validation_tokens for part in parts))


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

    @property
    def num_tokens(self) -> int:
        """Read for the rows so far."""
        return len(self.rows) * sum(int(source.validation.lengths.sum()) for source in (*self.run.anchors, *self.run.tasks))

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
