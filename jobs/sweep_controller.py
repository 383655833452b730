"""A sweep: many controller trainings side by side, judged on held-out cases; the best configuration is left as `sweep/best.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from cluster.reference_runs import with_references
from cluster.session import ray_session
from cluster.sweep import account_for, run_sweep
from cluster.sweep_trial import SweepPlan
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from jobs.train_controller import dropped_words, idle_runners
from proxymix.account import VALIDATION, total_flops
from proxymix.artifacts import write_json, write_text
from proxymix.cases import Case, draw_cases
from proxymix.config import Config
from proxymix.controller_config import SweptConfig
from proxymix.data.fingerprints import content_key
from proxymix.errors import UserError
from proxymix.sweep_config import SweepConfig
from proxymix.sweep_result import Trial, best_config, best_trial, sweep_table
from proxymix.sweep_space import check_sweep, trial_config, validation_cases

WORKERS = ("max_concurrent", "num_env_runners")
"""Keys that may change while a sweep goes on."""


def sweep_controller(run: Run, proxy_base: str, held_out: list[Case]) -> dict[str, Any]:
    """The finished sweep, as `sweep/trials.json` holds it; goes on where an earlier call stopped."""
    config, folder = run.config, run.folder / "sweep"
    write_json(folder / "settings.json", config.sweep.model_dump(mode="json"))
    cases = draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, config.training_seed)
    with run.phase("sweep_controller"):
        with run.progress("reference runs") as update:
            referenced = with_references(_paired(config), proxy_base, [*cases, *held_out], run.account, update)
        plan = SweepPlan(config, proxy_base, referenced[: len(cases)], referenced[len(cases) :], folder)
        if (words := idle_runners(plan.trial_defaults, "sweep.num_env_runners")) is not None:
            run.say_once(words)
        with run.progress("sweep (rungs, if none is stopped)") as update:
            trials = run_sweep(plan, update)
        # From its first episode on: what a member of a population inherited is in its cost, but once in the account.
        trials = [trial | {"flops": sum(rung["flops"] for rung in trial["rungs"])} for trial in trials]
        cost = account_for(run.account, folder) | {"reference_flops": total_flops(run.account.made("reference"))}
        best = best_trial(trials)
        write_text(folder / "best.yaml", best_config(config, best, _swept(run, trials, best, cost)))
        # Last: a sweep with this file is a finished one.
        write_json(folder / "trials.json", {"best": best["trial"], "cost": cost, "trials": trials})
    return dict(run.read("sweep/trials.json"))


def _swept(run: Run, trials: Sequence[Trial], best: Trial, cost: Mapping[str, int]) -> SweptConfig:
    """What the sweep cost on top of training its best configuration, which meets the same cases and brings their references if it needs them."""
    paired = trial_config(run.config, best["overrides"]).controller.reward.kind == "paired"
    beyond = VALIDATION if paired else (VALIDATION, "case")
    references = [line for line in run.account.made("reference") if line.id.startswith(beyond)]
    before = run.config.controller.swept or SweptConfig(id="none", flops=0, episodes=0)  # These settings may come from a sweep themselves.
    flops, episodes = cost["flops"] + total_flops(references) + before.flops, cost["episodes"] + before.episodes
    return SweptConfig(id=content_key(trials)[:12], flops=flops, episodes=episodes)


def show(run: Run) -> None:
    """The table, on standard output, and what to do next."""
    found = run.read("sweep/trials.json")
    Console().print(sweep_table(found["trials"]))
    if num_dropped := found["cost"].get("num_dropped"):
        run.say(dropped_words(num_dropped))
    run.say("train the best:")
    run.console.out(f"python -m jobs.train_controller --config {run.folder / 'sweep' / 'best.yaml'}", highlight=False)


def check_settings(run: Run) -> None:
    """Raises UserError where the run's sweep was begun with other settings, or a controller is given."""
    run.config.controller.must_be_learnt("jobs.sweep_controller")
    written, now = run.read("sweep/settings.json"), run.config.sweep.model_dump(mode="json")
    if written is None:
        return
    # Through the model: keys that are newer than the sweep take their defaults.
    before = SweepConfig.model_validate(written).model_dump(mode="json")
    if changed := ", ".join(f"sweep.{key}" for key in now if before[key] != now[key] and key not in WORKERS):
        raise UserError(
            f"{changed}: the sweep in {str(run.folder / 'sweep')!r} was begun with another; give the run another name or remove that folder"
        )


def _paired(config: Config) -> Config:
    """Validation needs references whatever the trials' rewards are."""
    reward = config.controller.reward.model_copy(update={"kind": "paired"})
    return config.model_copy(update={"controller": config.controller.model_copy(update={"reward": reward})})


def job(run: Run) -> None:
    """Stand-alone: proxy base, references, sweep, table."""
    check_settings(run)
    if run.read("sweep/trials.json") is None:
        check_sweep(run.config)
        held_out = validation_cases(run.config)
        with ray_session(run.config):
            sweep_controller(run, pretrain_base(run)[0], held_out)
    show(run)


if __name__ == "__main__":
    launch(job)
