"""The controller is learnt: PPO over proxy runs, an iteration a case, resumable after any of them.

    cases → EpisodicPPO.train → learning_curve.jsonl, checkpoint/ → mean of the last parameters → freeze_controller

`training_steps` stops after every iteration, so that a sweep can look at a training from outside; `train_policy` goes through to the end.

Every iteration is a function of the state it starts from, so a resumed training ends with the parameters of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray.util.metrics
import torch
from numpy.typing import NDArray

from cluster.episode_groups import EpisodePlan
from cluster.episodic_ppo import EpisodicPPO, build_algorithm
from cluster.policy_modules import parameters_of
from cluster.reference_runs import proxy_facts
from cluster.training_checkpoint import load_state, save_state
from proxymix.account import Cost
from proxymix.artifacts import read_jsonl, write_jsonl
from proxymix.cases import Case
from proxymix.config import Config
from proxymix.controllers.frozen import save_controller
from proxymix.env import ParallelTuningEnv
from proxymix.telemetry import Telemetry
from proxymix.tracking import open_tracker
from proxymix.watching import Watch

LEARNING_CURVE = "learning_curve.jsonl"

Row = dict[str, Any]
Environment = Callable[[Config, str, Sequence[Case], int], gymnasium.vector.VectorEnv[Any, Any, Any]]


@dataclass(frozen=True)
class TrainingResult:
    """A training, finished or so far."""

    parameters: dict[str, NDArray[np.float64]]
    """Of the policy: the mean over the last `controller.average_last` of the iterations; empty before the first."""
    rows: list[Row]
    """The learning curve, a row an iteration."""
    cases: tuple[Case, ...]
    """What it was trained on."""

    @property
    def cost(self) -> dict[str, float]:
        """Proxy runs, stages and tokens tuned in them and seconds, repeated episodes not counted."""
        return {
            "episodes": sum(row["episodes"] for row in self.rows),
            "stages": sum(row["stages"] for row in self.rows),
            "tokens": sum(row["num_tokens"] for row in self.rows),
            "validation_tokens": sum(row["num_validation_tokens"] for row in self.rows),
            "seconds": round(sum(row["sample_seconds"] + row["learn_seconds"] for row in self.rows), 3),
        }


def train_policy(
    config: Config,
    base_folder: str,
    cases: Sequence[Case],
    out: Path,
    on_iteration: Callable[[Row], None],
    environment: Environment = ParallelTuningEnv,
) -> TrainingResult:
    """Learns the controller, or goes on where a checkpoint in `out` stands; a finished training is only read.

    Args:
        config: `controller`, `tuning` and `seed` decide.
        base_folder: model that every proxy run starts from.
        cases: met in turn, one an iteration; with reference scores for the paired reward (`with_references`).
        out: `checkpoint/` and `learning_curve.jsonl` go here.
        on_iteration: called with each new row of the learning curve.
        environment: what episodes are played in, several side by side.

    Raises:
        UserError: the checkpoint was made under another configuration; or its PPO settings cannot work.
        RuntimeError: an episode failed, or env runners kept dying.
    """
    tracker = open_tracker(config.tracking, config.name, f"training/{out.name}", config.run_dir)
    watch = Watch(Telemetry(ray.util.metrics), tracker, run=config.name)
    with closing(watch), closing(training_steps(config, base_folder, cases, out, environment)) as steps:
        result = next(steps)
        for result in steps:
            on_iteration(result.rows[-1])
            watch.iteration(result.rows[-1])
    return result


def training_steps(
    config: Config,
    base_folder: str,
    cases: Sequence[Case],
    out: Path,
    environment: Environment = ParallelTuningEnv,
    start: Path | None = None,
) -> Generator[TrainingResult, None, None]:
    """The training as it stands in `out`, then as it stands after each further iteration; nothing is started before the second is asked for.

    Args:
        config: as for `train_policy`, and so the next three.
        base_folder: model that every proxy run starts from.
        cases: met in turn, one an iteration.
        out: `checkpoint/` and `learning_curve.jsonl` go here, before each step is yielded.
        environment: what an episode is played in.
        start: folder of a training, perhaps of other settings, to go on from where `out` holds none (population-based training).

    Raises:
        UserError: the checkpoint in `out` was made under another configuration; or its PPO settings cannot work.
        RuntimeError: an episode failed, or env runners kept dying.
    """
    num_iterations = config.controller.episodes // config.controller.episodes_per_iteration
    fingerprint = _fingerprint(config, base_folder, cases)
    state, source = load_state(out, fingerprint), out
    if state.iteration == 0 and start is not None:
        state, source = load_state(start, None), start
    # A row is written before its checkpoint: one too many means the iteration is done again, to the same row.
    rows = list(read_jsonl(source / LEARNING_CURVE))[: state.iteration]
    yield TrainingResult(state.mean_parameters(), rows, tuple(cases))
    if state.iteration >= num_iterations:
        return
    with _quiet(), _one_thread():
        algorithm = build_algorithm(config, partial(environment, config, base_folder, list(cases)))
        try:
            state.restore(algorithm.learner())
            for iteration in range(state.iteration, num_iterations):
                rows = [*rows, _iterate(algorithm, config, cases, iteration)]
                state = state.after(algorithm.learner(), parameters_of(algorithm.module()), config.controller.average_last)
                write_jsonl(out / LEARNING_CURVE, rows)
                save_state(out, state, fingerprint)
                yield TrainingResult(state.mean_parameters(), rows, tuple(cases))
        finally:
            algorithm.stop()


def dropped_cost(row: Row) -> Cost:
    """Of an iteration's lost episodes: at most what as many of it cost on average."""
    share = row["num_dropped"] / row["episodes"]
    return Cost(round(share * row["flops"]), share * row["cpu_seconds"])


def freeze_controller(config: Config, result: TrainingResult, training_flops: int, out: Path) -> str:
    """Writes the frozen controller into `out` with what it was trained on and what that cost.

    Args:
        config: of the run.
        result: of `train_policy`.
        training_flops: operations of the episodes and of the cases' reference runs.
        out: folder of the controller.

    Returns:
        SHA-256 of the weights.
    """
    cost = result.cost
    facts = {
        "training": {"sequences": [[task.label for task in case.tasks] for case in result.cases], "sources": _sources(result.cases)},
        "seed": config.training_seed,
        "versions": {name: importlib.metadata.version(name) for name in ("proxymix", "ray", "torch", "numpy")},
        "training_cost": cost,
        "training_flops": training_flops,
        "decide_every": config.controller.decide_every,
    }
    controller = config.controller
    return save_controller(out, result.parameters, name="proxymix", architecture=controller.architecture, facts=facts, without=controller.without)


def plan_iteration(config: Config, cases: Sequence[Case], iteration: int) -> EpisodePlan:
    """The episodes of an iteration, all on one of the cases."""
    case_index = iteration % len(cases)
    case, episodes = cases[case_index], range(config.controller.episodes_per_iteration)
    seeds = tuple((config.training_seed, iteration, episode) for episode in episodes)
    return EpisodePlan(iteration, case_index, seeds, case.num_optimizer_steps(config.tuning), config.group_size, case.reference_step_s)


def _iterate(algorithm: EpisodicPPO, config: Config, cases: Sequence[Case], iteration: int) -> Row:
    """One iteration, as a row of the learning curve."""
    algorithm.plan = plan_iteration(config, cases, iteration)
    algorithm.train()
    outcome, case = algorithm.outcome, cases[algorithm.plan.case_index]
    scores = [float(info["score"]) for info in outcome.infos]
    gpus = config.proxy.gpus_per_runner * max(1, config.started_env_runners)
    return {
        "iteration": iteration,
        "episodes": len(outcome.returns),
        "stages": len(outcome.returns) * len(case.tasks) * config.tuning.stages_per_task,
        "case": case.name,
        "score_mean": float(np.mean(scores)),
        "score_sd": float(np.std(scores)),
        "reference_mean": float(np.mean(case.reference_scores)) if case.reference_scores else None,
        "reward_mean": float(np.mean(outcome.returns)),
        "num_tokens": sum(int(info.get("num_tokens", 0)) for info in outcome.infos),
        "num_validation_tokens": sum(int(info.get("num_validation_tokens", 0)) for info in outcome.infos),
        "flops": sum(int(info.get("flops", 0)) for info in outcome.infos),
        "replay_share_mean": float(np.mean([info["replay_share"] for info in outcome.infos])),
        "sigma_mean": float(algorithm.module().sigma.mean()),
        "num_dropped": outcome.num_dropped,
        "sample_seconds": round(outcome.sample_seconds, 3),
        "learn_seconds": round(outcome.learn_seconds, 3),
        "cpu_seconds": round(outcome.cpu_seconds, 3),
        "gpu_seconds": round(gpus * (outcome.sample_seconds + outcome.learn_seconds), 3),
    }


def _fingerprint(config: Config, base_folder: str, cases: Sequence[Case]) -> str:
    """Of all that the learnt parameters depend on. How many env runners there are is not among it, nor what finding the settings cost."""
    controller = config.controller.model_dump(mode="json", exclude={"num_env_runners", "swept"})
    facts = json.dumps([proxy_facts(config, base_folder), controller, [repr(case) for case in cases]], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def _sources(cases: Sequence[Case]) -> list[str]:
    """Every training source with its world, so that a reader can see that none is in the table."""
    return sorted({f"{task.label}@{task.world}" if task.world else task.label for case in cases for task in case.tasks})


@contextmanager
def _one_thread() -> Iterator[None]:
    """The sums of a gradient depend on the number of threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """RLlib warns of deprecations inside itself and of its own old stack at every build; nothing here can heed them."""
    loggers = {name: logging.getLogger(name) for name in ("ray", "ray.rllib", "ray.tune")}
    levels = {name: logger.level for name, logger in loggers.items()}
    try:
        for logger in loggers.values():
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, logger in loggers.items():
            logger.setLevel(levels[name])
