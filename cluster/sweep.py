"""The sweep itself: Ray Tune over controller trainings, with ASHA or population-based training, Optuna or random search.

    SweepPlan → Tuner (or Tuner.restore) → trials, each with its rungs          Tune's own state: sweep/tune/

What a trial found is read from what it wrote (`cluster.sweep_trial`), never from Tune's memory; Tune only decides who runs.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import optuna
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from cluster.sweep_trial import LINEAGE, METRIC, RUNGS, SweepPlan, run_trial
from proxymix.account import Account, Cost
from proxymix.artifacts import read_json, read_jsonl
from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.sweep_config import DimensionConfig
from proxymix.sweep_space import draw, overrides_of, pbt_dimensions, sweep_space

TUNE_ENVIRONMENT = {
    # Ctrl-C ends a sweep like any other job; Tune would catch it and call the sweep over.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Tune writes down who runs at most this long after it changed; what they found is written down at once.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The newer output speaks even when told not to.
    "RAY_AIR_NEW_OUTPUT": "0",
}
MAX_LOST_TRIALS = 3
"""Times a trial is taken up again after its process was lost or failed."""

Progress = Callable[[int, int], None]


def account_for(account: Account, folder: Path) -> dict[str, int]:
    """A line of the account for every rung of the sweep in `folder`, once however many trials inherited it; another for its lost episodes.

    Returns:
        Their `episodes` and `flops` in all, and `num_dropped`: episodes that were lost with an env runner and run again.
    """
    total = {"episodes": 0, "flops": 0, "num_dropped": 0}
    for path in sorted(folder.glob(f"trainings/*/{LINEAGE}")):
        parent, rungs = read_json(path)["parent"], list(read_jsonl(path.with_name(RUNGS)))
        inherited = parent["rung"] if parent else 0
        # A member of a population that inherits the last rung has nothing left to do, and no rungs of its own.
        for before, rung in list(zip([{"episodes": 0}, *rungs], rungs, strict=False))[inherited:]:
            episodes, lost = rung["episodes"] - before["episodes"], rung.get("num_dropped", 0)  # Sweeps of before did not count them.
            key = f"{path.parent.name}/rung{rung['rung']}"
            if not account.has("sweep_trial", key):
                cost = Cost(rung["flops"], rung["cpu_seconds"], rung.get("gpu_seconds", 0.0))
                account.add("sweep_trial", key, "proxy", cost, episodes=episodes)
                if lost:
                    cost = Cost(rung["dropped_flops"], rung["dropped_cpu_seconds"])
                    account.add("sweep_trial", key, "proxy", cost, episodes=lost)
            own = {"episodes": episodes, "flops": rung["flops"], "num_dropped": lost}
            total = {name: number + own[name] for name, number in total.items()}
    return total


class RestoredASHA(ASHAScheduler):
    """ASHA to which a restored trial's rungs are told again, since Tune keeps nothing of what a scheduler has heard."""

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Before any trial goes on. A new one has no rungs yet."""
        super().on_trial_add(tune_controller, trial)
        for rung in _rungs(Path(trial.storage.storage_fs_path), trial.last_result):
            self._trial_info[trial.trial_id].on_result(trial, rung["rung"], self._metric_op * rung[METRIC])


class Watch(tune.Callback):
    """Counts rungs for whoever watches; a trial that was stopped counts as gone to its end."""

    progress: ClassVar[Progress] = staticmethod(lambda done, total: None)
    """On the class, because Tune pickles its callbacks with the sweep and no progress bar can be pickled."""

    def __init__(self, num_trials: int, num_rungs: int) -> None:
        """Args: how many trials there will be, of how many rungs each."""
        self.num_trials, self.num_rungs = num_trials, num_rungs

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """After every event of the sweep."""
        done = sum(self.num_rungs if trial.is_finished() else int((trial.last_result or {}).get("rung", 0)) for trial in trials)
        Watch.progress(done, self.num_trials * self.num_rungs)


def run_sweep(plan: SweepPlan, progress: Progress = lambda done, total: None) -> list[dict[str, Any]]:
    """Every trial of the sweep, run now or gone on with; needs Ray to be initialised.

    Args:
        plan: what is swept.
        progress: called with (rungs done, rungs if no trial were stopped).

    Returns:
        A row a trial, in the order they were begun: `trial`, `status` (`finished`, `stopped` early or `failed`), `overrides`, `rungs`, `error`.

    Raises:
        UserError: the cluster cannot hold one trial.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage, trainable = plan.folder / plan.tune_folder, _trainable(plan)
    Watch.progress = staticmethod(progress)
    if tune.Tuner.can_restore(str(storage)) and any(storage.glob("experiment_state-*.json")):
        # As many at a time as it began with, if there is room: what a trial reserves is what the new `trainable` says.
        tuner = tune.Tuner.restore(str(storage), trainable, resume_errored=True)
    else:
        tuner = _tuner(plan, trainable)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Advice on actors that are used again: a training starts in a fresh process.
        results = tuner.fit()
    # Once it was restored, Tune gives the latest heard of first.
    begun = sorted(results, key=lambda result: Path(result.path).name)
    return [_trial_row(plan, index, result) for index, result in enumerate(begun)]


def _tuner(plan: SweepPlan, trainable: Any) -> tune.Tuner:
    sweep = plan.config.sweep
    scheduler, search = _scheduler(plan), search_algorithm(plan.config)
    population = sweep.scheduler == "pbt"
    return tune.Tuner(
        trainable,
        param_space={key: _domain(dimension) for key, dimension in pbt_dimensions(plan.config).items()} if population else {},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=sweep.num_trials,
            # A population takes turns: members that wait count as running here, so their number is limited by what each reserves.
            max_concurrent_trials=None if population else sweep.max_concurrent,
            scheduler=scheduler,
            search_alg=search,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=plan.tune_folder,
            storage_path=str(plan.folder),
            verbose=0,
            callbacks=[Watch(sweep.num_trials, plan.num_rungs)],
            failure_config=tune.FailureConfig(max_failures=MAX_LOST_TRIALS),
        ),
    )


def _trial_name(trial: Trial) -> str:
    """Of its folder: its place in the order they are begun, with which Tune's tag starts, then its id."""
    return f"{int(trial.experiment_tag.partition('_')[0]):05d}-{trial.trial_id}"


def _trainable(plan: SweepPlan) -> Any:
    """`run_trial` with what it reserves: a CPU for itself and one for each of its env runners, with as much of a GPU as proxies use.

    Raises:
        UserError: the cluster has not as many.
    """
    sweep = plan.config.sweep
    needed = 1 + plan.num_env_runners
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if sum(nodes) < needed:
        raise UserError(
            f"sweep.num_env_runners: a trial needs {needed} Ray CPUs (itself and its env runners), the cluster has {sum(nodes)}; lower it or add some"
        )
    gpus = {"GPU": plan.config.proxy.gpus_per_runner} if plan.config.proxy.use_gpu else {}  # The trial's own: it validates.
    if (found := sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])) < (wanted := needed * sum(gpus.values())):
        raise UserError(
            f"proxy.gpus_per_runner: a trial needs {wanted:g} GPUs (itself and its env runners), the cluster has {found:g}; lower it or add some"
        )
    own = 1
    if sweep.scheduler == "pbt":
        own = max(1, min(sum(nodes) // sweep.max_concurrent, max(nodes)) - plan.num_env_runners)
    bundles = [{"CPU": float(own)} | gpus] + [{"CPU": 1.0} | gpus] * plan.num_env_runners
    return tune.with_resources(tune.with_parameters(run_trial, plan=plan), tune.PlacementGroupFactory(bundles))


def _scheduler(plan: SweepPlan) -> TrialScheduler:
    sweep = plan.config.sweep
    if sweep.scheduler == "asha":
        grace = min(sweep.grace_rungs, plan.num_rungs)
        return RestoredASHA(time_attr="training_iteration", max_t=plan.num_rungs, grace_period=grace, reduction_factor=sweep.reduction_factor)
    if sweep.scheduler == "none":
        return FIFOScheduler()
    dimensions = pbt_dimensions(plan.config)
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=1,
        hyperparam_mutations={key: _domain(dimension) for key, dimension in dimensions.items()},
        custom_explore_fn=partial(_within, {key: dimension.bounds for key, dimension in dimensions.items()}),
        log_config=False,
    )


def _within(bounds: Mapping[str, Sequence[float]], config: dict[str, Any]) -> dict[str, Any]:
    """Perturbed values back inside their bounds, which PBT itself oversteps."""
    return {key: min(max(value, bounds[key][0]), bounds[key][1]) if key in bounds else value for key, value in config.items()}


def search_algorithm(config: Config) -> Searcher | SearchAlgorithm:
    """Who proposes configurations; drawn from the run's seed."""
    if config.sweep.scheduler == "pbt":
        return BasicVariantGenerator(random_state=config.seed)
    if config.sweep.search == "random":
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=config.seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=config.sweep.num_startup_trials)
    return OptunaSearch(partial(draw, sweep_space(config), config.model_dump(mode="json")), metric=METRIC, mode="max", sampler=sampler)


def _domain(dimension: DimensionConfig) -> Any:
    low, high = dimension.bounds
    return tune.loguniform(low, high) if dimension.log_uniform else tune.uniform(low, high)


def _trial_row(plan: SweepPlan, index: int, result: Any) -> dict[str, Any]:
    """A trial as it ended, its rungs from its own folder."""
    rungs = _rungs(plan.folder, result.metrics)
    status = "failed" if result.error else "finished" if len(rungs) == plan.num_rungs else "stopped"
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    return {"trial": index, "status": status, "overrides": overrides_of(result.config), "rungs": rungs, "error": error}


def _rungs(folder: Path, last: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Of a trial, as far as Tune has heard of them: `last` is what it heard last, `folder` the sweep's."""
    last = last or {}
    return list(read_jsonl(folder / "trainings" / str(last.get("training")) / RUNGS))[: last.get("rung", 0)]
