"""The controller: learnt by PPO on proxy runs, then frozen into `controller/`."""

from __future__ import annotations

from cluster.policy_training import freeze_controller, train_policy
from cluster.reference_runs import with_references
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.cases import draw_cases
from proxymix.controllers.frozen import FrozenController


def train_controller(run: Run, proxy_base: str) -> FrozenController:
    """The frozen controller of the run, learnt now unless it is there already."""
    config, folder = run.config, run.folder / "controller"
    if not (folder / "controller.json").exists():
        cases = draw_cases(config.controller.curriculum, config.tuning, config.controller.curriculum.num_cases, config.seed)
        with run.phase("train_controller"):
            with run.progress("reference runs") as update:
                references = with_references(config, proxy_base, cases, folder, update)
            with run.progress("controller (proxy episodes)") as update:
                result = train_policy(
                    config,
                    proxy_base,
                    references.cases,
                    folder,
                    lambda row: update((row["iteration"] + 1) * row["episodes"], config.controller.episodes),
                )
            freeze_controller(config, result, references, run.read("base/proxy.json")["num_parameters"], folder)
    controller = FrozenController.load(folder)
    run.say(f"controller {controller.name} frozen, sha256 {str(controller.sha256)[:12]}…")
    return controller


def job(run: Run) -> None:
    """Stand-alone: proxy base, training, freezing."""
    with ray_session(run.config):
        train_controller(run, pretrain_base(run)[0])


if __name__ == "__main__":
    launch(job)
