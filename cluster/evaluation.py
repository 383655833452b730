"""Checkpoints are scored while tuning goes on: a pool of actors, each with one engine that is given one set of weights after another.

    checkpoints/task<k>/ without scores/task<k>.json → a free EvaluationActor → scores/task<k>.json
                                        ↳ its engine does not answer as the trainer's model → a new actor, with an engine built from the checkpoint

The file system is the queue: nothing is lost when a worker, an actor or the driver dies, and running the job again goes on.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import ray
import ray.util.metrics
from ray.actor import ActorHandle

from cluster.evaluation_actor import ENVIRONMENT, EvaluationActor
from proxymix.artifacts import read_json, target_folder, write_json
from proxymix.cases import sequence_tasks
from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.evaluation.generation import askable
from proxymix.evaluation.scoring import base_score_path, score_path
from proxymix.evaluation.verification import StaleWeightsError
from proxymix.learners.models import load_tokenizer
from proxymix.telemetry import EVALUATION_LAG, REBUILT_ENGINES, Telemetry
from proxymix.types import Source

logger = logging.getLogger(__name__)

POLL_S = 0.2
MAX_ATTEMPTS = 3
"""Per checkpoint; each time on a fresh actor."""
_numbers = count()
"""Of this driver's actors: a name is free again only some time after its actor is gone."""
_REMEDY = "see the actor's log in the Ray dashboard, then run the same command again"


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and where its score belongs."""

    name: str
    folder: str
    score: Path
    disposable: bool = False
    """Whether the folder may go once it is scored."""


@dataclass
class _Call:
    """What an actor is doing now; no checkpoint: starting its engine."""

    actor: ActorHandle
    checkpoint: Checkpoint | None
    began: float = field(default_factory=time.monotonic)


class EvaluationPool:
    """`evaluation.actors` actors and the thread that feeds them. A context manager: leaving it frees everything."""

    def __init__(self, config: Config, base_folder: str, sources: Sequence[Source], *, call_timeout_s: float = 1800.0) -> None:
        """Returns at once; the engines load in the background.

        Args:
            config: of the run.
            base_folder: of the untuned target; every checkpoint has its architecture and tokenizer.
            sources: every source of the sequence; only the test rows are used.
            call_timeout_s: an actor that says nothing for so long is replaced.

        Raises:
            UserError: the base has no usable tokenizer, or a right answer is longer than `evaluation.max_new_tokens`.
        """
        tests = askable(config, sources, load_tokenizer(base_folder, config.target.model.chat_template))
        self.config, self.base_folder, self.call_timeout_s = config, base_folder, call_timeout_s
        self._tests = ray.put(tests)
        self._queue: Callable[[], list[Checkpoint]] = list
        self._telemetry = Telemetry(ray.util.metrics)
        self._idle: list[ActorHandle] = []
        self._calls: dict[ray.ObjectRef, _Call] = {}
        self._attempts: dict[Path | None, int] = {}
        self._given_up: dict[Path, str] = {}
        self._again: set[Path] = set()
        """Scores of checkpoints that were left unscored before; each is tried once more."""
        self._fault: UserError | None = None
        self.start_seconds = 0.0
        """Of the engines started so far, meanwhile."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evaluation-pool", daemon=True)
        for _ in range(config.evaluation.actors):
            self._add_actor()

    def start(self, run_dir: str | Path, assignments: Sequence[tuple[str, int]]) -> None:
        """From now on scores the base and every checkpoint that appears in these target runs, (method, seed) each.

        What is there unscored, as its weights could not be verified, is tried once more: the fault may have been the machine's.
        """
        root = Path(run_dir)
        self._queue = lambda: self._checkpoints(root, assignments)
        self._again = {c.score for c in self._queue() if "unscored" in (read_json(c.score) or {}) and Path(c.folder).exists()}
        self._thread.start()

    def check(self) -> None:
        """Says whether scoring goes on; cheap, from any thread.

        Raises:
            UserError: what stopped it. A single checkpoint that cannot be scored does not: `finish` tells of it.
        """
        if self._fault is not None:
            raise self._fault

    def finish(self, progress: Callable[[int, int], None] | None = None, stall_timeout_s: float = 1800.0) -> None:
        """Waits until every checkpoint that is there has its score; call it when tuning is over.

        Args:
            progress: called with (done, total).
            stall_timeout_s: give up when no score comes for so long, seconds.

        Raises:
            UserError: a checkpoint cannot be scored, or nothing moves any more.
        """
        last, since = -1, time.monotonic()
        while True:
            checkpoints = self._queue()
            waiting = [c for c in checkpoints if self._waits(c) and c.score not in self._given_up]
            done = len(checkpoints) - len(waiting)
            if progress:
                progress(done, len(checkpoints))
            if done != last:
                last, since = done, time.monotonic()
            self.check()
            if not waiting and self._given_up:
                raise UserError("\n".join(self._given_up.values()))
            if not waiting:
                return _dispose(checkpoints)
            if time.monotonic() - since > stall_timeout_s:
                raise UserError(f"evaluate: no score came for {stall_timeout_s:.0f} s, {len(waiting)} to go, next {waiting[0].name}; {_REMEDY}")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Stops feeding and kills the actors; their CPUs and memory are free on return or a moment later."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if ray.is_initialized():
            for actor in [*self._idle, *(call.actor for call in self._calls.values())]:
                ray.kill(actor)
        self._idle, self._calls = [], {}

    def __enter__(self) -> EvaluationPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.wait(POLL_S):
            try:
                self._collect()
                self._dispatch()
            except UserError as error:
                self._fault = error
                return
            except Exception as error:
                # The driver waits on this thread, so whatever ends it must reach the driver.
                self._fault = UserError(f"evaluate: {type(error).__name__}: {error}; {_REMEDY}")
                logger.exception("the evaluation pool stopped")
                return

    def _collect(self) -> None:
        """Takes results; an actor that failed, died or is stuck is replaced and its checkpoint goes back to the queue."""
        for reference, call in list(self._calls.items()):
            if not ray.wait([reference], timeout=0)[0]:
                if time.monotonic() - call.began > self.call_timeout_s:
                    ray.kill(call.actor)
                continue
            del self._calls[reference]
            try:
                result = ray.get(reference)
            except Exception as error:
                self._failed(call, error)
                continue
            self._idle.append(call.actor)
            if call.checkpoint is None:
                self.start_seconds += result
            else:
                write_json(call.checkpoint.score, {"checkpoint": call.checkpoint.name, **result})
                self._again.discard(call.checkpoint.score)

    def _failed(self, call: _Call, error: Exception) -> None:
        # A failed reload leaves an engine half old, half new: never use it again.
        ray.kill(call.actor)
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause
        if isinstance(cause, StaleWeightsError) and call.checkpoint:
            logger.warning("%s: %s; its engine is rebuilt", call.checkpoint.folder, cause)
            self._telemetry.record(REBUILT_ENGINES, 1, run=self.config.name)
            return self._add_actor(call.checkpoint)
        key = call.checkpoint.score if call.checkpoint else None
        self._attempts[key] = self._attempts.get(key, 0) + 1
        what = f"score {call.checkpoint.folder!r}" if call.checkpoint else f"start the {self.config.evaluation.engine} engine"
        reason = f"{type(cause or error).__name__}: {cause or error}".strip().splitlines()[0]
        logger.warning("could not %s (attempt %d): %s", what, self._attempts[key], reason)
        if self._attempts[key] >= MAX_ATTEMPTS:
            message = f"evaluate: could not {what} in {MAX_ATTEMPTS} attempts: {reason}; {_REMEDY}"
            if key is None:
                raise UserError(message)
            if key in self._again:  # It stays unscored, with the reason that stands in its file.
                self._again.discard(key)
            else:
                self._given_up[key] = message
        self._add_actor()

    def _dispatch(self) -> None:
        settled = {call.checkpoint.score for call in self._calls.values() if call.checkpoint} | set(self._given_up)
        checkpoints = self._queue()
        _dispose(checkpoints)
        self._telemetry.record(EVALUATION_LAG, sum(map(self._waits, checkpoints)), run=self.config.name)
        for checkpoint in checkpoints:
            if self._idle and checkpoint.score not in settled and self._waits(checkpoint):
                actor = self._idle.pop()
                self._calls[_score(actor, checkpoint)] = _Call(actor, checkpoint)

    def _waits(self, checkpoint: Checkpoint) -> bool:
        """Whether a score is still to come."""
        return checkpoint.score in self._again or not checkpoint.score.exists()

    def _checkpoints(self, run_dir: Path, assignments: Sequence[tuple[str, int]]) -> list[Checkpoint]:
        """The base, then every checkpoint that is there or was scored, in the order of the assignments."""
        num_tasks, keep_all = len(sequence_tasks(self.config)), self.config.evaluation.keep_checkpoints == "all"
        found = [Checkpoint("base", self.base_folder, base_score_path(run_dir))]
        for method, seed in assignments:
            folder = target_folder(run_dir, method, seed)
            for index in range(num_tasks):
                model, score = folder / "checkpoints" / f"task{index}", score_path(folder, index)
                if model.exists() or score.exists():
                    found.append(Checkpoint(f"task{index}", str(model), score, not keep_all and index + 1 < num_tasks))
        return found

    def _add_actor(self, checkpoint: Checkpoint | None = None) -> None:
        """A new actor, whose engine is built from `checkpoint` to score it, or from the base to wait for work."""
        config = self.config
        environment = ENVIRONMENT if config.target.model.hub else {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}
        gpus = config.evaluation.tensor_parallel * config.target.parallelism.use_gpu
        options = {"num_cpus": 1, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}
        name = f"evaluator/{config.name}/{next(_numbers)}"
        actor = ray.remote(EvaluationActor).options(name=name, **options).remote(config, self.base_folder, self._tests)
        reference = _score(actor, checkpoint) if checkpoint else actor.warm_up.options(name=f"start/{name}").remote()
        self._calls[reference] = _Call(actor, checkpoint)


def _score(actor: ActorHandle, checkpoint: Checkpoint) -> ray.ObjectRef:
    name = "/".join(("score", *checkpoint.score.parts[-4:]))
    return actor.score.options(name=name).remote(checkpoint.folder)


def _dispose(checkpoints: Sequence[Checkpoint]) -> None:
    """Removes what is scored and need not stay; a checkpoint that could not be scored stays for whoever looks into it."""
    for checkpoint in checkpoints:
        if checkpoint.disposable and Path(checkpoint.folder).exists() and "unscored" not in (read_json(checkpoint.score) or {"unscored": ""}):
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
