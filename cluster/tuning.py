"""The target on Ray Train: one worker group goes through all target runs, one after another.

    assignments → TorchTrainer → every rank: learner → ContinualRun → run_continual → journal (rank 0 writes)

Starting Train costs about 20 s, so it is paid once. A worker that dies takes its group with it; Train starts another, which goes on from
the journal at the last stage boundary. What the runs have to say is in their folders, not in what Train returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray.train
import ray.util.metrics
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
from torch.distributed.device_mesh import init_device_mesh

from cluster.ranks import SharedController
from proxymix.account import Account
from proxymix.artifacts import read_json, read_jsonl, target_folder, write_json
from proxymix.cases import Case, CaseBuilder, sequence_tasks
from proxymix.checkpoints import Checkpoints
from proxymix.config import PROXYMIX, Config
from proxymix.continual import run_continual
from proxymix.controllers.held import HeldDecisions
from proxymix.data.fingerprints import content_key
from proxymix.errors import NonFiniteLossError, UserError
from proxymix.journal import RunJournal, is_finished
from proxymix.learners.device import tuning_device
from proxymix.learners.interface import ResumableLearner
from proxymix.learners.large import LargeLearner
from proxymix.learners.learner import Learner
from proxymix.learners.models import TransformersModel, load_model
from proxymix.ranks import ALONE, Ranks
from proxymix.telemetry import Telemetry
from proxymix.tracking import NoTracker, check_tracker, open_tracker
from proxymix.types import Controller
from proxymix.watching import Watch, WatchedJournal

Assignment = tuple[str, int]
"""Method and seed of one target run."""
MAX_RESTARTS = 3
"""Of the worker group, over all assignments."""


@dataclass(frozen=True)
class TuningPlan:
    """All that a worker must know."""

    config: Config
    assignments: tuple[Assignment, ...]
    base_folder: str
    run_dir: str
    controller_for: Callable[[str, int, str | None], Controller]
    ready: Callable[[str], None]

    @property
    def fault_path(self) -> Path:
        """Where workers leave a message for the person who started them."""
        return Path(self.run_dir) / "ray_train" / "fault.json"


def tune_targets(
    config: Config,
    assignments: Sequence[Assignment],
    *,
    base_folder: str,
    run_dir: str,
    controller_for: Callable[[str, int, str | None], Controller],
    name: str,
    ready: Callable[[str], None] = lambda method: None,
) -> None:
    """Tunes every target run that is not finished; returns when all are.

    Args:
        config: of the run; relative data paths are taken from here, not from where a worker stands.
        assignments: (method, seed) pairs, in this order.
        base_folder: the untuned target, readable by every worker.
        run_dir: `runs/<name>`, shared by all nodes.
        controller_for: builds the controller of a pair, with the hash of the one that the pair's run began with, if it did; pickled, called on
            rank 0 only. A `close` method is called when the run is over.
        name: of the Ray Train run.
        ready: returns when runs of a method can be tuned; pickled, called on every rank before each of them.

    Raises:
        UserError: what a worker found wrong with the input, a loss that is not finite, or a group that kept dying.
    """
    check_tracker(config.tracking)
    run_dir, data_root = str(Path(run_dir).resolve()), str(Path(config.data_root or ".").resolve())
    todo = tuple(pair for pair in assignments if not is_finished(target_folder(run_dir, *pair)))
    if not todo:
        return
    base_folder = str(Path(base_folder).resolve()) if Path(base_folder).exists() else base_folder
    plan = TuningPlan(config.model_copy(update={"data_root": data_root}), todo, base_folder, run_dir, controller_for, ready)
    plan.fault_path.unlink(missing_ok=True)
    try:
        trainer(partial(_work, plan), config, name=name, storage=Path(run_dir)).fit()
    except TrainingFailedError as error:
        raise UserError(f"tune_target: {failure(error)}; every finished stage is kept, run the same command again to go on") from error
    fault = read_json(plan.fault_path)
    if fault is not None:
        raise UserError(fault["message"])


def tuning_progress(config: Config, run_dir: str | Path, assignments: Sequence[Assignment]) -> tuple[int, int]:
    """Stages tuned so far and in all, over all assignments; read from the run folder."""
    done = sum(1 for method, seed in assignments for _ in read_jsonl(target_folder(run_dir, method, seed) / "decisions.jsonl"))
    return done, len(assignments) * len(sequence_tasks(config)) * config.tuning.stages_per_task


def trainer(work: Callable[[], None], config: Config, *, name: str, storage: Path) -> TorchTrainer:
    """What runs `work` on the workers that the target is tuned by.

    Args:
        work: what every rank runs; what it finds it writes down itself.
        config: of the run.
        name: of the Ray Train run.
        storage: folder for Train's own files, the same on every node.
    """
    parallelism = config.target.parallelism
    # Decisions travel as Python objects, so there is a CPU backend beside the GPUs'.
    backend = "cpu:gloo,cuda:nccl" if parallelism.use_gpu else "gloo"
    return TorchTrainer(
        work,
        torch_config=TorchConfig(backend=backend),
        scaling_config=ScalingConfig(
            num_workers=parallelism.num_workers,
            use_gpu=parallelism.use_gpu,
            resources_per_worker=_resources(config),
            placement_strategy="SPREAD" if parallelism.spread else "PACK",
        ),
        run_config=RunConfig(name=name, storage_path=str(storage / "ray_train"), failure_config=FailureConfig(max_failures=MAX_RESTARTS)),
    )


def _resources(config: Config) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if config.target.parallelism.use_gpu else {"CPU": 1}


def failure(error: TrainingFailedError) -> str:
    """Why the workers did not get to the end, in one line."""
    if isinstance(error, WorkerGroupError):
        return f"the workers failed {MAX_RESTARTS + 1} times, lastly with: {_said(next(iter(error.worker_failures.values()), error))}"
    return f"Ray Train stopped: {_said(error.controller_failure if isinstance(error, ControllerError) else error)}"


def _said(error: Exception) -> str:
    """What was raised, on one line: the last of a text that is a whole traceback, else all of it, as hints come last."""
    text = str(error).strip()
    return text.splitlines()[-1].strip() if "Traceback (most recent call last)" in text else " ".join([f"{type(error).__name__}:", *text.split()])


def _work(plan: TuningPlan) -> None:
    """What every rank runs. A mistake of the person's ends it quietly, with a message in the run folder: restarting would not help."""
    torch.set_num_threads(plan.config.target.parallelism.threads_per_worker)
    ranks = Ranks(ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size())
    try:
        device = ray.train.torch.get_device()
        builder = ranks.together(partial(target_builder, plan.config, plan.base_folder, ranks, device))
        for method, seed in plan.assignments:
            ranks.together(partial(plan.ready, method))
            _tune(plan, method, seed, builder, ranks)
    except UserError as error:
        if ranks.rank == 0:
            write_json(plan.fault_path, {"message": str(error)})


def _tune(plan: TuningPlan, method: str, seed: int, builder: CaseBuilder, ranks: Ranks) -> None:
    config = plan.config
    account, workers = Account(Path(plan.run_dir) / "costs.jsonl"), config.target.parallelism.num_workers
    gpus = workers * config.target.parallelism.use_gpu
    folder = target_folder(plan.run_dir, method, seed)
    if ranks.from_first(lambda: is_finished(folder)):  # A node may hear of a file later than another.
        return
    kept = ranks.together(lambda: Checkpoints(_checkpoint_place(config, folder), config.target.checkpoints.keep, ranks.rank))
    journal = RunJournal(folder, builder.learner, Path(plan.base_folder), account, workers, gpus, ranks=ranks, checkpoints=kept)
    tasks = sequence_tasks(config)
    case = Case(f"{config.name}/{method}/seed{seed}", tasks, (config.tuning.steps_per_stage,) * len(tasks), seed)
    run = ranks.together(lambda: builder.build(case))
    every = config.controller.decide_every if method == PROXYMIX else 1

    def build() -> Controller:
        return HeldDecisions(journal.asking(partial(plan.controller_for, method, seed)), every, journal.last_decision)

    with (
        closing(journal),
        closing(SharedController(method, build, ranks)) as controller,
        closing(ranks.together(lambda: _watch(config, plan.run_dir, method, seed, ranks))) as watch,
    ):
        journal.resume(run)
        try:
            run_continual(run, controller, WatchedJournal(journal, watch) if ranks.rank == 0 else journal)
        except NonFiniteLossError as error:
            raise UserError(f"target run {run.name}: {error}") from error


def _checkpoint_place(config: Config, folder: Path) -> str:
    """In the run's `folder`; elsewhere, with the hash of all that decides the run in its name: a run that is like it but in name starts anew."""
    storage = config.target.checkpoints.storage
    if storage is None:
        return str(folder / "state")
    facts = config.model_dump(mode="json", include={"seed", "sequence", "pretraining", "transfer", "tuning"}, exclude_defaults=True)
    # A key that is newer than the run changes nothing, nor what no result depends on.
    if controller := config.controller.model_dump(mode="json", exclude={"num_env_runners", "swept"}, exclude_defaults=True):
        facts["controller"] = controller
    facts["target"] = config.target.model_dump(mode="json", exclude={"parallelism", "checkpoints"}, exclude_defaults=True)
    return f"{storage.rstrip('/')}/{config.name}-{content_key(facts)[:12]}/{folder.parent.name}/{folder.name}"


def _watch(config: Config, run_dir: str, method: str, seed: int, ranks: Ranks) -> Watch:
    """One rank watches for all."""
    if ranks.rank != 0:
        return Watch(Telemetry(), NoTracker())
    tracker = open_tracker(config.tracking, config.name, f"{method}/seed{seed}", Path(run_dir))
    return Watch(Telemetry(ray.util.metrics), tracker, run=config.name, method=method, seed=str(seed))


def target_builder(
    config: Config, base_folder: str, ranks: Ranks = ALONE, device: torch.device | None = None, learner: type[Learner] | None = None
) -> CaseBuilder:
    """Builds runs of the target model as `config.target` wants it: adapters, precision, device, ranks.

    Args:
        config: of the run.
        base_folder: the untuned target.
        ranks: this worker's place in its group.
        device: where the model goes; None: the GPU this process was given, if the target is to use one.
        learner: what tunes it; None: what suits its implementation.

    Raises:
        UserError: a GPU is to be used and torch sees none, or the model cannot be loaded on one of the workers; then on all.
    """
    target = config.target
    if device is None:
        device = tuning_device(target.parallelism.use_gpu, "target.parallelism.use_gpu", "false")
    torch.manual_seed(config.seed)  # Adapters start at random; all ranks and all methods start alike.
    # Before anything is spread over workers: nobody may wait for one that has no model.
    model = ranks.together(lambda: load_model(base_folder, target.model.implementation, target.lora, target.precision))
    together = ranks.world_size > 1
    if learner is None and isinstance(model, TransformersModel):
        workers = init_device_mesh(device.type, (ranks.world_size,)) if together else None
        if not (together and target.parallelism.strategy == "fsdp"):  # There it may be more than one device holds.
            model = model.to(device)
        tuned: ResumableLearner = LargeLearner(model, config.tuning, target, workers, target.parallelism.strategy)
    else:
        reduce = ranks.reduce if together else None
        tuned = (learner or Learner)(model.to(device), config.tuning, rank=ranks.rank, world_size=ranks.world_size, reduce=reduce)
    return CaseBuilder(config, base_folder, tuned, target.model.chat_template)


def flat_target_builder(config: Config, base_folder: str, learner: type[Learner] = Learner) -> CaseBuilder:
    """As `target_builder` of one worker, but always with a `Learner`: rivals that look at gradients or embeddings need it."""
    return target_builder(config, base_folder, learner=learner)
