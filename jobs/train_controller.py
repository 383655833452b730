"""The controller: learnt by PPO on proxy runs and frozen into `controller/`, or taken from `controller.path`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster.policy_training import Row, freeze_controller, train_policy
from cluster.reference_runs import with_references
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.account import Account, Cost, total_flops
from proxymix.cases import Case, draw_cases
from proxymix.config import Config
from proxymix.controllers.frozen import FrozenController, copy_controller

Role = Literal["proxy", "target"]


def train_controller(run: Run, proxy_base: str) -> FrozenController:
    """The frozen controller of the run: that of `controller.path`, else learnt now unless it is there already."""
    config, folder = run.config, run.folder / "controller"
    if config.controller.path is not None:
        _given(run, config.controller.path, folder)
    elif not (folder / "controller.json").exists():
        cases = draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, config.training_seed)
        with run.phase("train_controller"):
            learn(run, config, proxy_base, cases, folder)
    controller = FrozenController.load(folder)
    run.say(f"controller {controller.name} frozen, sha256 {str(controller.sha256)[:12]}…")
    return controller


def _given(run: Run, path: str, folder: Path) -> None:
    """A controller that someone has learnt before, and what that cost them."""
    card = copy_controller(path, folder).card
    cost, episodes = Cost(card.get("training_flops", 0)), card.get("training_cost", {}).get("episodes", 0)
    run.account.add("episodes", f"given/{str(card['sha256'])[:12]}", "proxy", cost, cached=True, episodes=int(episodes))


def learn(run: Run, config: Config, base: str, cases: Sequence[Case], folder: Path, prefix: str = "", model: Role = "proxy") -> None:
    """Learns a controller on `cases` and freezes it into `folder`, or goes on where that was left.

    Args:
        run: whose account pays, and whose console tells.
        config: of the training; the run's, or a variant of it.
        base: folder of the base that `config.proxy` starts from.
        cases: to train on, yet without reference scores.
        folder: of the controller.
        prefix: of its lines in the account, and of the names of `cases`; the card's cost is theirs.
        model: whose runs they are; `target` for an oracle, whose proxy is the target itself.
    """
    with run.progress(f"{prefix}reference runs") as update:
        referenced = with_references(config, base, cases, run.account, update, model)
    with run.progress(f"{prefix}controller (proxy episodes)") as update:

        def note(row: Row) -> None:
            account_for(run.account, row, prefix, model)
            update((row["iteration"] + 1) * row["episodes"], config.controller.episodes)

        result = train_policy(config, base, referenced, folder, note)
    for row in result.rows:
        if not run.account.has("episodes", prefix + line_id(row)):  # The driver was killed between the checkpoint and the line.
            account_for(run.account, row, prefix, model)
    lines = [line for line in run.account.made("reference", "episodes") if line.id.startswith(prefix)]
    freeze_controller(config, result, total_flops(lines), folder)


def account_for(account: Account, row: Row, prefix: str = "", model: Role = "proxy") -> None:
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
