"""What the rows of the benchmark rest on: controllers that are learnt or given, numbers that are chosen, schedules that are searched for.

    steered_rows, chosen_rows, searched_rows (on the proxy), oracle_rows (on the target) → Rows: (method, case) → Ready → the table

A row that is ready for some cases only stands in the table for those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from cluster.searches import SearchPlace, learn_mixtures, search_case, search_policy, tune_schedule
from cluster.table_runs import Role, TableRun
from jobs.accounted_runs import run_on
from jobs.run import Run
from jobs.train_controller import given_id, learn, take_given
from proxymix.account import total_flops
from proxymix.artifacts import write_json
from proxymix.benchmark_cases import (
    choice_cases,
    headroom_cases,
    oracle_config,
    practised_sequences,
    sequence_cases,
    sequence_mark,
    table_cases,
    table_methods,
    target_as_proxy,
    training_cases,
)
from proxymix.benchmark_checks import longest_sequence
from proxymix.benchmark_config import CHOSEN
from proxymix.cases import Case
from proxymix.config import PROXYMIX, Config
from proxymix.controllers.frozen import FrozenController, save_controller
from proxymix.controllers.rivals import Found
from proxymix.controllers.schedules import mean_schedule
from proxymix.reward import final_score


@dataclass(frozen=True)
class Ready:
    """What a method needs on one case before its own run."""

    found: Found = field(default_factory=Found)
    controller: str | None = None
    """Folder of the frozen controller that it asks."""
    policy_flops: int = 0
    """What all of it took: learning what is asked or copied, choosing, searching. Pilots are in no row."""


Rows = dict[str, dict[str, Ready]]
"""Per method and case name."""


@dataclass(frozen=True)
class Learnt:
    """A frozen controller, and the operations of its episodes and of the reference runs of its cases."""

    folder: str
    flops: int


def steered_rows(run: Run, proxy_base: str) -> Rows:
    """ProxyMix's: the controller that is given or the mean of those learnt, that with shuffled observations, and each of those learnt."""
    own = {} if run.config.controller.path else _learnt_members(run, proxy_base)
    main = _mean(run, own) if own else _given(run)
    asked = [PROXYMIX, *(["shuffled"] if "shuffled" in table_methods(run.config) else [])]
    return everywhere(run.config, dict.fromkeys(asked, main) | own)


def _given(run: Run) -> Ready:
    """That of `controller.path`."""
    take_given(run, longest_sequence(run.config))
    folder = run.folder / "controller"
    return Ready(controller=str(folder), policy_flops=run.account.flops("episodes", given_id(FrozenController.load(folder).sha256)))


def _learnt_members(run: Run, proxy_base: str) -> dict[str, Ready]:
    """One controller a training seed."""
    config, found = run.config, {}
    for seed in range(config.benchmark.num_controllers):
        seeded = config.model_copy(update={"controller": config.controller.model_copy(update={"seed": seed})})
        member = learnt(run, seeded, proxy_base, training_cases(config, seed), f"seed{seed}")
        found[f"{PROXYMIX}_seed{seed}"] = Ready(controller=member.folder, policy_flops=member.flops)
    return found


def _mean(run: Run, members: Mapping[str, Ready]) -> Ready:
    folder = _mean_controller(run, [str(member.controller) for member in members.values()])
    return Ready(controller=folder, policy_flops=sum(member.policy_flops for member in members.values()))


def learnt(run: Run, config: Config, base: str, cases: Sequence[Case], mark: str, model: Role = "proxy") -> Learnt:
    """The controller that `config` learns from `cases`, whose names begin with `mark`; learnt now unless it is in `controllers/<mark>` already."""
    folder = run.folder / "controllers" / mark
    if not (folder / "controller.json").exists():
        learn(run, config, base, cases, folder, f"{mark}/", model)
    lines = [line for line in run.account.made("reference", "episodes") if line.id.startswith(f"{mark}/")]
    return Learnt(str(folder), total_flops(lines))


def chosen_rows(run: Run, proxy_base: str, steered: Rows) -> Rows:
    """The best number of every rule on the proxy, by mean J on validation rows, and the controller's mean schedule there."""
    settings, asked, cases = run.config.benchmark, table_methods(run.config), choice_cases(run.config)
    candidates = {f"{rule}_chosen": {share: f"{rule}_{share:g}" for share in settings.choice.shares} for rule in CHOSEN}
    candidates["ramp_chosen"] = {constant: f"ramp_{constant:g}" for constant in settings.choice.constants}
    wanted = {name: numbers for name, numbers in candidates.items() if name in asked}
    methods = list(dict.fromkeys(method for numbers in wanted.values() for method in numbers.values()))
    if "schedule_mean" in asked:
        methods.append(PROXYMIX)
    mean = next(iter(steered[PROXYMIX].values()))
    runs = [TableRun(case, method, controller=mean.controller if method == PROXYMIX else None) for method in methods for case in cases]
    results = run_on(run, run.config, "proxy", proxy_base, runs, "choices on the proxy")
    by_method = {method: results[start * len(cases) :][: len(cases)] for start, method in enumerate(methods)}
    score = {method: float(np.mean([final_score(result["validation"]) for result in found])) for method, found in by_method.items()}
    spent = {method: sum(result["flops"] for result in found) for method, found in by_method.items()}
    numbers = {name: max(options, key=lambda number: score[options[number]]) for name, options in wanted.items()}
    write_json(run.folder / "benchmark" / "choices.json", {"numbers": numbers, "scores": score, "cases": [case.name for case in cases]})
    rows = {name: Ready(Found(numbers={name: numbers[name]}), policy_flops=sum(spent[m] for m in wanted[name].values())) for name in wanted}
    if PROXYMIX in by_method:
        found = Found(schedules={"schedule_mean": mean_schedule([result["shares"] for result in by_method[PROXYMIX]])})
        rows["schedule_mean"] = Ready(found, policy_flops=mean.policy_flops + spent[PROXYMIX])
    return everywhere(run.config, rows)


def searched_rows(run: Run, proxy_base: str) -> Rows:
    """A schedule and a policy found with the budget of all controllers on their cases; and what may know the sequence it is judged on."""
    config, methods, rows = run.config, table_methods(run.config), Rows()
    sequences, members = config.benchmark.sequences, config.benchmark.num_controllers
    training, budget = [case for seed in range(members) for case in training_cases(config, seed)], members * config.controller.episodes
    if "schedule_tuned" in methods:
        with run.progress("tuned schedule (proxy episodes)") as update:
            shares, flops = tune_schedule(SearchPlace(config, proxy_base, training, run.account, "schedule_tuned", update), budget)
        rows |= everywhere(config, {"schedule_tuned": Ready(Found(schedules={"schedule_tuned": shares}), policy_flops=flops)})
    if "random_policy" in methods:
        with run.progress("random policies (proxy episodes)") as update:
            parameters, flops = search_policy(SearchPlace(config, proxy_base, training, run.account, "random_policy", update), budget)
        folder = run.folder / "controllers" / "random_policy"
        save_controller(folder, parameters, name="random_policy", architecture=config.controller.architecture, facts={"search_flops": flops})
        rows |= everywhere(config, {"random_policy": Ready(controller=str(folder), policy_flops=flops)})
    if "doremi" in methods:
        domains = [sequence_cases(config, sequence, 1, f"doremi/{sequence}")[0] for sequence in sequences]
        with run.progress("DoReMi's mixtures") as update:
            mixtures = learn_mixtures(SearchPlace(config, proxy_base, domains, run.account, "doremi", update))
        ready = [Ready(Found(mixtures={"doremi": weights}), policy_flops=flops) for weights, flops in mixtures]
        rows["doremi"] = _of_sequences(config, dict(zip(sequences, ready, strict=True)))
    same = practised_sequences(config)["proxymix_same"]
    return rows | _practised(run, config, proxy_base, "proxymix_same", same, "", "proxy")


def oracle_rows(run: Run, config: Config, target_base: str) -> Rows:
    """What nobody could afford: the learner on the target itself, and the best schedule of a case by direct search there."""
    sequences, cases = practised_sequences(config)["oracle"], headroom_cases(config)
    oracle = oracle_config(config)
    own = f"_{oracle.controller.episodes}/{Path(target_base).name}"
    rows = _practised(run, oracle, target_base, "oracle", sequences, own, "target")
    found = {}
    for case in cases:
        mark = f"headroom/{Path(target_base).name}/{case.name}"
        with run.progress(f"headroom, {case.name}") as update:
            place = SearchPlace(target_as_proxy(config), target_base, [case], run.account, mark, update, "target")
            shares, anchors, flops = search_case(place, config.benchmark.headroom_evaluations)
        found[case.name] = Ready(Found(schedules={"headroom": shares}, anchor_scores={"headroom": anchors}), policy_flops=flops)
    return rows | ({"headroom": found} if found else {})


def _practised(run: Run, config: Config, base: str, row: str, sequences: Sequence[str], own: str, model: Role) -> Rows:
    """A controller a sequence, trained on nothing else; `own` tells its folders from those of other models and budgets."""
    ready = {}
    for sequence in sequences:
        mark = f"{row}{own}/{sequence_mark(config, sequence)}"
        member = learnt(run, config, base, sequence_cases(config, sequence, config.controller.curriculum.num_cases, mark), mark, model)
        ready[sequence] = Ready(controller=member.folder, policy_flops=member.flops)
    return {row: _of_sequences(config, ready)} if ready else {}


def everywhere(config: Config, rows: Mapping[str, Ready]) -> Rows:
    """The same for every case of the table."""
    return {method: {case.name: ready for case in table_cases(config)} for method, ready in rows.items()}


def _of_sequences(config: Config, ready: Mapping[str, Ready]) -> dict[str, Ready]:
    """By case, of the sequences that have one."""
    return {case.name: ready[sequence] for case in table_cases(config) if (sequence := case.name.partition("/")[0]) in ready}


def _mean_controller(run: Run, folders: Sequence[str]) -> str:
    """The folder of the controller whose parameters are the mean of theirs."""
    controller, members = run.config.controller, [FrozenController.load(folder) for folder in folders]
    parameters = [load_file(Path(folder) / "controller.safetensors") for folder in folders]
    mean = {name: np.mean([each[name] for each in parameters], axis=0) for name in parameters[0]}
    trained = [member.card["training"] for member in members]
    costs = [member.card["training_cost"] for member in members]
    facts = {
        "members": [member.sha256 for member in members],
        "decide_every": controller.decide_every,
        "training_flops": sum(member.card["training_flops"] for member in members),
        "training_cost": {key: sum(cost[key] for cost in costs) for key in costs[0]},
        "training": {
            "sequences": [sequence for each in trained for sequence in each["sequences"]],
            "sources": sorted({source for each in trained for source in each["sources"]}),
        },
    }
    folder = run.folder / "controllers" / "mean"
    save_controller(folder, mean, name=PROXYMIX, architecture=controller.architecture, facts=facts, without=controller.without)
    return str(folder)
