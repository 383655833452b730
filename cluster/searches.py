"""What the benchmark's rows need that is found by search or learnt beforehand: each answer a Ray task a group of candidates, kept by content.

    tune_schedule | search_policy | search_case → Search → groups side by side on one batched model → FoundBySearch
    learn_mixtures → doremi's weights per sequence

A stopped search goes through its old questions again out of the cache, then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from cluster.case_keys import case_key
from cluster.table_runs import Role
from cluster.tasks import kept_builder, on_gpus, run_cached_tasks
from proxymix.account import Account, Cost, Meter
from proxymix.cases import Case, CaseBuilder, proxy_builder
from proxymix.config import Config
from proxymix.data.fingerprints import code_hash
from proxymix.doremi import learn_mixture
from proxymix.search import FloatArray, PolicySpace, ScheduleSpace, Search, Space, best_ever, cross_entropy, score_together, successive_halving

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SearchPlace:
    """Where candidates are run, and what is told of it."""

    config: Config
    """Its `proxy` is what is run; an oracle's is the target."""
    base_folder: str
    cases: Sequence[Case]
    """Question i is about case i modulo their number."""
    account: Account
    mark: str
    """Its lines in the account begin with it."""
    progress: Progress
    """Called with (runs done, runs in all)."""
    model: Role = "proxy"


@dataclass(frozen=True)
class Winner:
    """What a search found, and what finding it took."""

    vector: FloatArray
    flops: int


def tune_schedule(place: SearchPlace, num_runs: int) -> tuple[list[list[float]], int]:
    """The replay shares `[task][stage]` that are best on average over `place.cases`, found in `num_runs` runs; and operations."""
    config, controller = place.config, place.config.controller
    population = controller.episodes_per_iteration
    space = ScheduleSpace(config.controller.curriculum.most_tasks, config.tuning.stages_per_task)

    def used(case_index: int) -> int:
        return len(place.cases[case_index % len(place.cases)].tasks) * config.tuning.stages_per_task

    search = cross_entropy(space.start, num_runs // population, population, controller.average_last, np.random.default_rng(config.seed), used)
    winner = run_search(search, space, place, num_runs)
    return space.shares(winner.vector), winner.flops


def search_policy(place: SearchPlace, num_runs: int) -> tuple[dict[str, FloatArray], int]:
    """The best parameters among random ones, found in at most `num_runs` runs; and operations."""
    config, controller = place.config, place.config.controller
    space = PolicySpace(controller.architecture, controller.hidden_units, controller.max_sources, config.seed)
    search = successive_halving(space.start, controller.initial_sigma, num_runs, np.random.default_rng(config.seed))
    winner = run_search(search, space, place, num_runs)
    return space.parameters(winner.vector), winner.flops


def search_case(place: SearchPlace, evaluations: int) -> tuple[list[list[float]], list[float], int]:
    """The best schedule of the one case, shares and anchors' scores, by its validation rows: nothing that is learnt could know it; and operations."""
    config, population = place.config, place.config.controller.episodes_per_iteration
    space = ScheduleSpace(len(place.cases[0].tasks), config.tuning.stages_per_task, by_role=True)
    search = cross_entropy(space.start, evaluations // population, population, 1.0, np.random.default_rng(config.seed))
    winner = run_search(best_ever(search), space, place, evaluations // population * population)
    return space.shares(winner.vector), space.anchor_scores(winner.vector), winner.flops


def run_search(search: Search, space: Space, place: SearchPlace, num_runs: int) -> Winner:
    """Answers every question of `search`; `num_runs` is about how many runs that takes, for the progress."""
    flops, done = 0, 0
    candidates, case_index = next(search)
    while True:
        scores, spent = _scores(candidates, space, place, place.cases[case_index % len(place.cases)])
        flops, done = flops + spent, done + len(candidates)
        place.progress(done, max(done, num_runs))
        try:
            candidates, case_index = search.send(np.array(scores))
        except StopIteration as end:
            return Winner(end.value, flops)


def learn_mixtures(place: SearchPlace) -> list[tuple[dict[str, float], int]]:
    """DoReMi's mixture for the domains of each of `place.cases`, and operations."""
    config, base = place.config, place.base_folder
    keys = [case_key(config, "proxy", base, case, ["doremi", code_hash("doremi.py")]) for case in place.cases]
    task = on_gpus(_mixture, config.proxy.gpus_per_runner)
    submissions = [partial(task.options(name=f"doremi/{case.name}").remote, config, base, case) for case in place.cases]
    results = _answers(place, keys, submissions, [2] * len(keys), place.progress)
    return [(result["weights"], result["flops"]) for result in results]


def _scores(candidates: FloatArray, space: Space, place: SearchPlace, case: Case) -> tuple[list[float], int]:
    """Of every candidate on `case`, a task a group."""
    config, base = place.config, place.base_folder
    groups = [candidates[start : start + config.group_size] for start in range(0, len(candidates), config.group_size)]
    rule = ["search", type(space).__name__, code_hash("search.py"), config.group_size]
    keys = [case_key(config, "proxy", base, case, [*rule, repr(space), group.tolist()]) for group in groups]
    task = on_gpus(_group, config.proxy.gpus_per_runner)
    submissions = [partial(task.options(name=f"search/{case.name}").remote, config, base, case, space, group) for group in groups]
    results = _answers(place, keys, submissions, [len(group) for group in groups], lambda done, total: None)
    return [score for result in results for score in result["scores"]], sum(result["flops"] for result in results)


def _answers(place: SearchPlace, keys: Sequence[str], submissions: Sequence[Any], episodes: Sequence[int], progress: Progress) -> list[Any]:
    """The tasks' results, with `flops` as the account has them."""
    ids = [f"{place.mark}/{key[:8]}" for key in keys]

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        place.account.add("episodes", ids[index], place.model, Cost(**result["cost"]), cached=cached, episodes=episodes[index])

    at_once = max(1, place.config.controller.num_env_runners)
    results = run_cached_tasks(Path(place.config.cache_root) / "searches", keys, submissions, at_once, progress, note)
    return [result | {"flops": place.account.flops("episodes", id)} for id, result in zip(ids, results, strict=True)]


@ray.remote(num_cpus=1, max_retries=3)
def _group(config: Config, base_folder: str, case: Case, space: Space, candidates: FloatArray) -> dict[str, Any]:
    builder, meter = kept_builder(group_builder, config.model_dump_json(), base_folder), Meter(config.proxy.gpus_per_runner)
    scores, flops = score_together(builder, case, [space.controller(candidate) for candidate in candidates])
    return {"scores": scores, "cost": asdict(meter.read(flops))}


@ray.remote(num_cpus=1, max_retries=3)
def _mixture(config: Config, base_folder: str, case: Case) -> dict[str, Any]:
    builder, meter = kept_builder(proxy_builder, config.model_dump_json(), base_folder), Meter(config.proxy.gpus_per_runner)
    learnt = learn_mixture(partial(builder.build, case))
    return {"weights": dict(learnt.weights), "cost": asdict(meter.read(learnt.flops))}


def group_builder(config: Config, base_folder: str) -> CaseBuilder:
    """Builds runs of the proxy, as many side by side as a controller's training has."""
    return proxy_builder(config, base_folder, num_replicas=config.group_size)
