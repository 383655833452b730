"""The controller: learnt by PPO on proxy runs and frozen into `controller/`, or taken from `controller.path`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster.policy_training import Row, dropped_cost, freeze_controller, train_policy
from cluster.reference_runs import with_references
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.account import GIVEN, Account, Cost, of_policy, total_flops
from proxymix.cases import Case, draw_cases, sequence_tasks
from proxymix.config import Config
from proxymix.controllers.frozen import FrozenController, copy_controller
from proxymix.errors import UserError

Role = Literal["proxy", "target"]


def train_controller(run: Run, proxy_base: str) -> FrozenController:
    """The frozen controller of the run: that of `controller.path`, else learnt now unless it is there already."""
    config, folder = run.config, run.folder / "controller"
    if not take_given(run) and not (folder / "controller.json").exists():
        cases = draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, config.training_seed)
        with run.phase("train_controller"):
            if swept := config.controller.swept:
                run.account.add("sweep_trial", GIVEN + swept.id, "proxy", Cost(swept.flops), cached=True, episodes=swept.episodes)
            learn(run, config, proxy_base, cases, folder)
    controller = FrozenController.load(folder)
    run.say(f"controller {controller.name} frozen, sha256 {str(controller.sha256)[:12]}…")
    return controller


def check_given(config: Config, most_tasks: int | None = None) -> None:
    """What would stop a run that is given its controller, before anything has started.

    Args:
        config: of the run.
        most_tasks: of what is to be steered; None: of the configured sequence.

    Raises:
        UserError: the folder holds none, or one that cannot steer this run.
    """
    if config.controller.path is None:
        return
    given = FrozenController.load(config.controller.path)
    asked, num_sources = config.controller.decide_every, len(config.sequence.anchors) + (most_tasks or len(sequence_tasks(config)))
    every = given.card.get("decide_every", 1)
    if every != asked:
        raise UserError(f"controller.decide_every: must be {every} as the controller in controller.path was learnt, got {asked}")
    if given.max_sources is not None and given.max_sources < num_sources:
        raise UserError(f"controller.path: must hold a controller for the {num_sources} sources of the sequence, got one for {given.max_sources}")


def take_given(run: Run, most_tasks: int | None = None) -> bool:
    """Copies the controller of `controller.path` into the run, with what learning it took; False where none is given.

    Args:
        run: to be given it.
        most_tasks: as for `check_given`.
    """
    if (path := run.config.controller.path) is None:
        return False
    check_given(run.config, most_tasks)
    card = copy_controller(path, run.folder / "controller").card
    cost, episodes = Cost(card.get("training_flops", 0)), card.get("training_cost", {}).get("episodes", 0)
    run.account.add("episodes", given_id(card["sha256"]), "proxy", cost, cached=True, episodes=int(episodes))
    return True


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
    if (words := idle_runners(config)) is not None:
        run.say_once(words)
    with run.progress(f"{prefix}reference runs") as update:
        referenced = with_references(config, base, cases, run.account, update, model)
    with run.progress(f"{prefix}controller (proxy episodes)") as update:

        def note(row: Row) -> None:
            account_for(run.account, row, prefix, model)
            if row["num_dropped"]:
                run.say(f"{prefix}{line_id(row)}: {dropped_words(row['num_dropped'])}")
            update((row["iteration"] + 1) * row["episodes"], config.controller.episodes)

        result = train_policy(config, base, referenced, folder, note)
    for row in result.rows:
        if not run.account.has("episodes", prefix + line_id(row)):  # The driver was killed between the checkpoint and the line.
            account_for(run.account, row, prefix, model)
    made = run.account.made("reference", "episodes", "sweep_trial")
    lines = [line for line in made if of_policy(line) and line.id.startswith(prefix)]
    freeze_controller(config, result, total_flops(lines), folder)


def idle_runners(config: Config, key: str = "controller.num_env_runners") -> str | None:
    """What to tell a person who asked for more env runners than an iteration has groups of episodes; None where all are started.

    Args:
        config: of the training.
        key: that they were asked for by.
    """
    controller, started = config.controller, config.started_env_runners
    asked, episodes = controller.num_env_runners, controller.episodes_per_iteration
    if started == asked:
        return None
    fitting = max((size for size in range(1, episodes // asked + 1) if episodes % size == 0), default=None)
    remedy = f"controller.proxies_side_by_side to {fitting}" if fitting else f"{key} (or raise controller.episodes_per_iteration)"
    return (
        f"{key}: {started} of {asked} are started, one for each group of {config.group_size} in an iteration of {episodes} episodes; lower {remedy}"
    )


def account_for(account: Account, row: Row, prefix: str = "", model: Role = "proxy") -> None:
    """A line an iteration; another for its lost episodes, which were run again while the GPUs of the first were held."""
    cost = Cost(row["flops"], row["cpu_seconds"], row.get("gpu_seconds", 0.0))
    account.add("episodes", prefix + line_id(row), model, cost, episodes=row["episodes"])
    if lost := row["num_dropped"]:
        account.add("episodes", prefix + line_id(row), model, dropped_cost(row), episodes=lost)


def dropped_words(num_dropped: int) -> str:
    """What to tell a person of lost episodes."""
    return f"{num_dropped} episodes were lost with an env runner that died or hung, and run again; see Ray's worker logs"


def given_id(sha256: str) -> str:
    """Of a controller that was given, in the account."""
    return GIVEN + sha256[:12]


def line_id(row: Row) -> str:
    """Of an iteration in the account."""
    return f"iteration{row['iteration']}"


def job(run: Run) -> None:
    """Stand-alone: proxy base, training, freezing."""
    with ray_session(run.config):
        train_controller(run, pretrain_base(run)[0])


if __name__ == "__main__":
    launch(job)
