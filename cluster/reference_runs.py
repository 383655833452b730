"""Reference runs for the paired reward: what simple schedules reach on the very cases a controller is trained on.

cases → ramp_10 and random_20 on the proxy, a Ray task a case → J and seconds, kept by content under `cache_root` → cases with reference scores
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ray

from cluster.case_keys import case_key
from cluster.tasks import kept_builder, on_gpus, run_cached_tasks
from proxymix.account import Account, Cost, Meter
from proxymix.cases import Case, proxy_builder
from proxymix.config import Config
from proxymix.continual import run_continual
from proxymix.controllers.baselines import baseline
from proxymix.episode import unrewarded
from proxymix.reward import final_score

REFERENCES = ("ramp_10", "random_20")
"""Two, because the mean of two is a steadier yardstick than either."""


def with_references(
    config: Config,
    base_folder: str,
    cases: Sequence[Case],
    account: Account,
    progress: Callable[[int, int], None] = lambda done, total: None,
    model: Literal["proxy", "target"] = "proxy",
) -> tuple[Case, ...]:
    """`cases` with J of the reference controllers, and how fast they ran; as they are when the reward does not need them.

    Runs as many cases at a time as there are env runners; what any run has found out is not run again. `account` gets a line a case, of `model`:
    an oracle's proxy is the target.
    """
    if config.controller.reward.kind != "paired":
        return tuple(cases)
    judged = [] if config.controller.reward.safety else ["without safety"]
    keys = [case_key(config, "proxy", base_folder, case, [*REFERENCES, *judged]) for case in cases]
    task = on_gpus(_reference_runs, config.proxy.gpus_per_runner)
    submissions = [partial(task.options(name=f"reference/{case.name}").remote, config, base_folder, case) for case in cases]

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        # The key too: trials of a sweep have cases of one name that are not the same.
        account.add("reference", f"{cases[index].name}/{keys[index][:8]}", model, Cost(**result["cost"]), cached=cached, episodes=len(REFERENCES))

    at_once = max(1, config.controller.num_env_runners)
    results = run_cached_tasks(Path(config.cache_root) / "references", keys, submissions, at_once, progress, note)
    return tuple(_judged(case, config, result) for case, result in zip(cases, results, strict=True))


def _judged(case: Case, config: Config, result: dict[str, Any]) -> Case:
    num_steps = len(REFERENCES) * case.num_optimizer_steps(config.tuning)
    return replace(case, reference_scores=tuple(result["scores"]), reference_step_s=result["seconds"] / num_steps)


@ray.remote(num_cpus=1, max_retries=3)
def _reference_runs(config: Config, base_folder: str, case: Case) -> dict[str, Any]:
    """J of each reference controller, and what finding out took."""
    builder = kept_builder(proxy_builder, config.model_dump_json(), base_folder)
    meter, began, scores, flops = Meter(config.proxy.gpus_per_runner), time.perf_counter(), [], 0
    for method in REFERENCES:
        run = builder.build(case)
        run_continual(run, baseline(method))
        scores.append(final_score(run.validation_accuracies(), unrewarded(config.controller.reward, run)))
        flops += run.flops
    return {"scores": scores, "cost": asdict(meter.read(flops)), "seconds": round(time.perf_counter() - began, 3)}


def proxy_facts(config: Config, base_folder: str) -> dict[str, Any]:
    """All of a configuration that a proxy run's numbers depend on; the case and the controller come on top.

    A preset's folder is named by its content's hash.
    """
    tree = config.model_dump(mode="json", include={"seed": True, "data_root": True, "tuning": True, "proxy": {"model"}})
    tree["proxy"] |= config.proxy.facts()
    anchors = [anchor.model_dump(mode="json") for anchor in config.sequence.anchors]
    return tree | {"anchors": anchors, "test_size": config.evaluation.test_size, "base": Path(base_folder).name}
