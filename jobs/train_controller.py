"""The controller: learnt by PPO on proxy runs, then frozen into `controller/`."""

from __future__ import annotations

from typing import Literal

from cluster.policy_training import Row, freeze_controller, train_policy
from cluster.reference_runs import with_references
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.account import Account, Cost, total_flops
from proxymix.cases import draw_cases
from proxymix.controllers.frozen import FrozenController


def train_controller(run: Run, proxy_base: str) -> FrozenController:
    """The frozen controller of the run, learnt now unless it is there already."""
    config, folder = run.config, run.folder / "controller"
    if not (folder / "controller.json").exists():
        cases = draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, config.training_seed)
        with run.phase("train_controller"):
            with run.progress("reference runs") as update:
                cases = with_references(config, proxy_base, cases, run.account, update)
            with run.progress("controller (proxy episodes)") as update:

                def note(row: Row) -> None:
                    account_for(run.account, row)
                    update((row["iteration"] + 1) * row["episodes"], config.controller.episodes)

                result = train_policy(config, proxy_base, cases, folder, note)
            for row in result.rows:
                if not run.account.has("episodes", line_id(row)):  # The driver was killed between the checkpoint and the line.
                    account_for(run.account, row)
            freeze_controller(config, result, total_flops(run.account.made("reference", "episodes")), folder)
    controller = FrozenController.load(folder)
    run.say(f"controller {controller.name} frozen, sha256 {str(controller.sha256)[:12]}…")
    return controller


def account_for(account: Account, row: Row, prefix: str = "", model: Literal["proxy", "target"] = "proxy") -> None:
    """A line an iteration; another for its lost episodes, which were run again and cost at most what all cost on average."""
    cost = Cost(row["flops"], row["cpu_seconds"])
    account.add("episodes", prefix + line_id(row), model, cost, episodes=row["episodes"])
    if lost := row["num_dropped"]:
        share = lost / row["episodes"]
        account.add("episodes", prefix + line_id(row), model, Cost(round(share * cost.flops), share * cost.cpu_seconds), episodes=lost)


def line_id(row: Row) -> str:
    """Of an iteration in the account."""
    return f"iteration{row['iteration']}"


def job(run: Run) -> None:
    """Stand-alone: proxy base, training, freezing."""
    with ray_session(run.config):
        train_controller(run, pretrain_base(run)[0])


if __name__ == "__main__":
    launch(job)
