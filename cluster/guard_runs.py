"""What the guard is calibrated on: the proxy's own runs under the controller to be guarded, a Ray task a case, kept by content.

cases + the served controller → proxy runs → every loss they read → Guard (`proxymix.guard`)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.case_keys import case_key
from cluster.ranks import SharedController
from cluster.tasks import kept_builder, on_gpus, run_cached_tasks
from proxymix.account import Account, Cost, Meter
from proxymix.cases import Case, proxy_builder
from proxymix.config import PROXYMIX, Config
from proxymix.continual import run_continual
from proxymix.controllers.held import HeldDecisions
from proxymix.errors import UserError
from proxymix.ranks import Ranks
from proxymix.types import Controller, SourceReading, StageBoundary


def run_guard_cases(
    config: Config,
    base_folder: str,
    cases: Sequence[Case],
    controller: Callable[[], Controller],
    sha256: str,
    account: Account,
    progress: Callable[[int, int], None],
) -> list[StageBoundary]:
    """The last boundary of the proxy's run of every case; it holds every loss of the run.

    Args:
        config: of the run.
        base_folder: the proxy's base.
        cases: drawn like the controller's practice, but others.
        controller: builds what steers; called where the run is made.
        sha256: of the controller, for the cache.
        account: gets a line a case.
        progress: called with (done, total).

    Raises:
        UserError: the controller was away during a run, which then shows nothing of it.
    """
    keys = [case_key(config, "proxy", base_folder, case, ["guard", sha256, config.controller.decide_every]) for case in cases]
    task = on_gpus(_guard_run, config.proxy.gpus_per_runner)
    submissions = [partial(task.options(name=f"guard/{case.name}").remote, config, base_folder, case, controller) for case in cases]

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        account.add("guard", cases[index].name, "proxy", Cost(**result["cost"]), cached=cached)

    at_once = max(1, config.controller.num_env_runners)
    results = run_cached_tasks(Path(config.cache_root) / "guard", keys, submissions, at_once, progress, note)
    return [boundary_from_json(result["boundary"]) for result in results]


def boundary_from_json(tree: Mapping[str, Any]) -> StageBoundary:
    """The inverse of `dataclasses.asdict` and JSON."""
    sources = tuple(SourceReading(**{**source, "losses": tuple(source["losses"])}) for source in tree["sources"])
    return StageBoundary(**{**tree, "sources": sources})


@ray.remote(num_cpus=1, max_retries=2)
def _guard_run(config: Config, base_folder: str, case: Case, build: Callable[[], Controller]) -> dict[str, Any]:
    builder = kept_builder(proxy_builder, config.model_dump_json(), base_folder)
    meter, run = Meter(config.proxy.gpus_per_runner), builder.build(case)
    with closing(SharedController(PROXYMIX, build, Ranks())) as controller:
        records = run_continual(run, HeldDecisions(controller, config.controller.decide_every))
    away = next((record.decision.fallback for record in records if record.decision.fallback), None)
    if away is not None:
        raise UserError(f"transfer.guard: cannot be calibrated without the controller ({away}); run the same command again")
    return {"boundary": asdict(run.observe()), "cost": asdict(meter.read(run.flops))}
