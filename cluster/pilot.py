"""One pilot: a model's way through one case with uniform replay, by one process or, where that has not the room, by all of the target's workers.

case → run_continual → validation accuracies of the base and after every task → {"matrix", "cost"}
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.exceptions import TrainingFailedError

from cluster.tasks import kept_builder
from cluster.tuning import failure, target_builder, trainer
from proxymix.account import Meter
from proxymix.artifacts import read_json, write_json
from proxymix.cases import Case, CaseBuilder, proxy_builder
from proxymix.config import Config
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import UniformReplay
from proxymix.errors import UserError
from proxymix.planning.gpus import gpus_of
from proxymix.ranks import ALONE, Ranks
from proxymix.types import StageRecord

Role = Literal["proxy", "target"]
BUILDERS: Mapping[Role, Any] = {"proxy": proxy_builder, "target": target_builder}


@ray.remote(num_cpus=1, max_retries=2)
def pilot(config: Config, role: Role, folder: str, case: Case) -> dict[str, Any]:
    """The accuracy matrix of one model on one case, and its cost."""
    builder = kept_builder(BUILDERS[role], config.model_dump_json(), folder)
    return _piloted(config, builder, case, gpus_of(config, role))


@ray.remote(num_cpus=0, max_retries=2)
def pilot_together(config: Config, folder: str, case: Case) -> dict[str, Any]:
    """As `pilot` of the target, by a group of workers that Ray Train starts for it; `cache_root` is where they leave the result."""
    place = Path(config.cache_root) / "pilots" / uuid4().hex
    try:
        trainer(partial(_work, config, folder, case, place / "outcome.json"), config, name="pilot", storage=place).fit()
        outcome: dict[str, Any] | None = read_json(place / "outcome.json")
    except TrainingFailedError as error:
        raise UserError(f"check_mirroring: {failure(error)}; finished pilots are kept, run the same command again to go on") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if outcome is None:
        raise UserError(f"cache_root: must be one folder for all nodes, but a worker's result is not in {config.cache_root!r}; mount the storage")
    if "fault" in outcome:
        raise UserError(outcome["fault"])
    return outcome


def _work(config: Config, folder: str, case: Case, outcome: Path) -> None:
    """What every rank runs."""
    parallelism = config.target.parallelism
    torch.set_num_threads(parallelism.threads_per_worker)
    ranks = Ranks(ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size())
    try:
        device = ray.train.torch.get_device()
        builder = ranks.together(partial(target_builder, config, folder, ranks, device))
        found = _piloted(config, builder, case, ranks.world_size * parallelism.use_gpu, ranks)
    except UserError as error:
        found = {"fault": str(error)}
    if ranks.rank == 0:
        write_json(outcome, found)


def _piloted(config: Config, builder: CaseBuilder, case: Case, gpus: float, ranks: Ranks = ALONE) -> dict[str, Any]:
    meter = Meter(gpus)
    run = ranks.together(partial(builder.build, case))
    rows = _AccuracyRows(run)
    run_continual(run, UniformReplay(config.transfer.replay_share), rows)
    cost = meter.read(run.flops)  # Every rank's processor time is taken to be this one's.
    return {"matrix": rows.matrix().tolist(), "cost": asdict(replace(cost, cpu_seconds=cost.cpu_seconds * ranks.world_size))}


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
