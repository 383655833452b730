"""The benchmark's runs: one Ray task a (case, method), kept by content, so that whatever was run once is never run again.

(config, model, case, method, what was found) → TableRun → run_table → a row's content, from the cache or computed now
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray
import torch

from cluster.case_keys import case_key
from cluster.tasks import kept_builder, on_gpus, run_cached_tasks
from cluster.tuning import flat_target_builder
from proxymix.account import Meter
from proxymix.cases import Case, CaseBuilder, proxy_builder
from proxymix.config import Config, LoraConfig
from proxymix.continual import ContinualRun, run_continual
from proxymix.controllers.baselines import baseline
from proxymix.controllers.controls import ShuffledObservations, untrained
from proxymix.controllers.frozen import FrozenController
from proxymix.controllers.held import HeldDecisions
from proxymix.controllers.noisy_readings import NoisyReadings
from proxymix.controllers.rivals import Found, rival
from proxymix.evaluation.exactness import ScoringJournal
from proxymix.learners.orthogonal import OrthogonalLearner
from proxymix.planning.gpus import gpus_of
from proxymix.types import Controller

Role = Literal["proxy", "target"]
OLORA = "olora"
ADAPTERS = LoraConfig(rank=8, alpha=32.0)
"""O-LoRA's where the target has none: the original's; few directions, or the tasks of a sequence would not find any left."""


@dataclass(frozen=True)
class TableRun:
    """One cell of work."""

    case: Case
    method: str
    found: Found = field(default_factory=Found)
    """What was chosen for this method, if anything."""
    controller: str | None = None
    """Folder of the frozen controller that the method asks."""
    noise: float = 0.0
    """Standard deviation of the noise on the readings it is shown, relative to them; an ablation."""


def run_table(
    config: Config,
    role: Role,
    base_folder: str,
    runs: Sequence[TableRun],
    progress: Callable[[int, int], None],
    done: Callable[[int, str, dict[str, Any], bool], None] = lambda index, key, result, cached: None,
) -> list[dict[str, Any]]:
    """The result of every run: `report` (as accuracy.json), `validation` (per source, at the end), `shares` `[task][stage]`, `replay_share`, `cost`.

    Args:
        config: of the run.
        role: which model is tuned.
        base_folder: where it starts.
        runs: what to run; those in the cache are not.
        progress: called with (done, total).
        done: called with each result's index, its key in the cache, itself, and whether it was there already.
    """
    keys = [case_key(_config(config, run.method), role, base_folder, run.case, _rule(config, run)) for run in runs]
    task = on_gpus(_table_run, gpus_of(config, role))
    submissions = [partial(task.options(name=f"table/{role}/{run.method}/{run.case.name}").remote, config, role, base_folder, run) for run in runs]

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        done(index, keys[index], result, cached)

    return run_cached_tasks(Path(config.cache_root) / "table", keys, submissions, max(1, config.controller.num_env_runners), progress, note)


def _rule(config: Config, run: TableRun) -> Any:
    frozen = FrozenController.load(run.controller) if run.controller else None
    asked = [frozen.sha256, frozen.card.get("decide_every", 1), run.noise] if frozen else None
    controller = config.controller
    shape = [controller.architecture, controller.hidden_units, controller.max_sources, controller.without]
    untrained_as = shape if run.method == "untrained" else None
    return ["table", run.method, asdict(run.found), asked, untrained_as, config.evaluation.test_size, controller.reward.gamma]


@ray.remote(num_cpus=1, max_retries=3)
def _table_run(config: Config, role: Role, base_folder: str, asked: TableRun) -> dict[str, Any]:
    make = orthogonal_builder if asked.method == OLORA else {"proxy": proxy_builder, "target": flat_target_builder}[role]
    builder = kept_builder(make, _config(config, asked.method).model_dump_json(), base_folder)
    meter, run = Meter(gpus_of(config, role)), builder.build(asked.case)
    scores = _tests(builder, asked.case, run, config.controller.reward.gamma)
    records = run_continual(run, _controller(config, asked, run), scores)
    cost, replayed = meter.read(run.flops), sum(record.replay_share * sum(record.counts.values()) for record in records)
    shares: dict[int, list[float]] = {}
    for record in records:
        shares.setdefault(record.boundary.task_index, []).append(record.replay_share)
    return {
        "report": scores.report(),
        "validation": run.validation_accuracies(),
        "shares": list(shares.values()),
        "replay_share": replayed / sum(sum(record.counts.values()) for record in records),
        "cost": asdict(cost),
    }


def _config(config: Config, method: str) -> Config:
    """As given; O-LoRA's target has adapters, whatever the other rows tune."""
    if method != OLORA:
        return config
    target = config.target.model_copy(
        update={"model": config.target.model.model_copy(update={"implementation": "transformers"}), "lora": config.target.lora or ADAPTERS}
    )
    return config.model_copy(update={"target": target})


def orthogonal_builder(config: Config, base_folder: str) -> CaseBuilder:
    """Builds runs of the target that are tuned by O-LoRA."""
    return flat_target_builder(config, base_folder, OrthogonalLearner)


def _controller(config: Config, asked: TableRun, run: ContinualRun) -> Controller:
    if asked.method == "untrained":
        controller = config.controller
        return untrained(controller.architecture, controller.hidden_units, controller.max_sources, config.seed, without=controller.without)
    if asked.controller is None:
        return baseline("no_replay") if asked.method == OLORA else rival(asked.method, run, asked.found)
    frozen = FrozenController.load(asked.controller)
    held = HeldDecisions(frozen, frozen.card.get("decide_every", 1))
    if asked.noise:
        return NoisyReadings(held, asked.noise, asked.case.seed)
    return ShuffledObservations(held, asked.case.seed) if asked.method == "shuffled" else held


def _tests(builder: CaseBuilder, case: Case, run: ContinualRun, gamma: float) -> ScoringJournal:
    tests = {spec.label: builder.test(spec) for spec in (*builder.config.sequence.anchors, *case.tasks)}
    harmful = {name: torch.tensor(rows) for name, (_, rows) in tests.items() if rows is not None}
    return ScoringJournal(run, {name: split for name, (split, _) in tests.items()}, harmful, gamma)
