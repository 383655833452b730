"""What one target run leaves behind, and how it goes on after being killed.

runs/<name>/target/<method>/seed<k>/
    decisions.jsonl           every boundary, decision and realised count
    answers.jsonl             what was decided, before it is acted on (`answers.py`); gone when the run is over
    token                     of the workers that may write here (`fence.py`); gone when the run is over
    state/                    the run at its last stage boundaries (`checkpoints.py`), unless `target.checkpoints.storage` is elsewhere
    checkpoints/task<k>/      a Hugging Face folder after every task, with a fingerprint of its answers; scored by the evaluation actors
    done                      present once the run is over
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from proxymix.account import Account, Cost
from proxymix.answers import AskedOnce, decision_fields, decision_of
from proxymix.artifacts import write_folder, write_jsonl, write_text, writing
from proxymix.checkpoints import Checkpoints
from proxymix.continual import ContinualRun
from proxymix.errors import UserError
from proxymix.evaluation.verification import Fingerprint
from proxymix.fence import Fence
from proxymix.learners.interface import ResumableLearner
from proxymix.learners.models import write_model
from proxymix.ranks import ALONE, Ranks
from proxymix.types import Controller, Decision, StageRecord

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"


def record_row(record: StageRecord) -> dict[str, Any]:
    """A record as it stands in `decisions.jsonl`."""
    boundary, decision = record.boundary, record.decision
    return {
        "request_id": record.request_id,
        "task_index": boundary.task_index,
        "stage_index": boundary.stage_index,
        "num_stages": boundary.num_stages,
        "sources": [asdict(source) for source in boundary.sources],
        "replay_share": record.replay_share,
        **decision_fields(decision),
        "counts": dict(record.counts),
        "training_loss": record.training_loss,
        "num_optimizer_steps": record.num_optimizer_steps,
        "num_tokens": record.num_tokens,
        "num_validation_tokens": record.num_validation_tokens,
        "training_flops": record.training_flops,
        "validation_flops": record.validation_flops,
        "seconds": dict(record.seconds),
    }


def is_finished(folder: Path) -> bool:
    """Whether the target run in `folder` is over."""
    return (folder / "done").exists()


class RunJournal:
    """Writes a target run's folder; implements `proxymix.continual.Journal`."""

    def __init__(
        self,
        folder: Path,
        learner: ResumableLearner,
        base_folder: Path,
        account: Account | None = None,
        workers: int = 1,
        gpus: int = 0,
        *,
        ranks: Ranks = ALONE,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        """Nothing is written yet.

        Args:
            folder: of the target run.
            learner: the run's.
            base_folder: where the checkpoints' tokenizer comes from.
            account: gets a line a stage.
            workers: processes that tune together; this one's CPU seconds stand for each of theirs.
            gpus: held by all of them together.
            ranks: this worker's place. The first one writes; the others have journals too, as what is saved may lie with all of them.
            checkpoints: where stage boundaries are kept; None: in `folder`.
        """
        self.folder, self.learner, self.base_folder = folder, learner, base_folder
        self.account, self.workers, self.gpus, self.ranks = account, workers, gpus, ranks
        self.writes = ranks.rank == 0
        self.checkpoints = checkpoints or Checkpoints(str(folder / "state"), rank=ranks.rank)
        self.fence = Fence(folder / "token")
        self.rows: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether this run is over."""
        return is_finished(self.folder)

    @property
    def last_decision(self) -> Decision | None:
        """Of the stage before; None before the first."""
        return decision_of(self.rows[-1]) if self.rows else None

    def asking(self, choose: Callable[[str | None], Controller]) -> AskedOnce:
        """The controller that `choose` makes, given the hash to hold it to, and that is asked nothing that the run knows; after `resume`."""
        return AskedOnce(choose, self.folder / ANSWERS, self.rows, self.fence)

    def resume(self, run: ContinualRun) -> bool:
        """Puts `run` and its learner where the last stage boundary left them; False when there is nothing to go on from.

        Raises:
            UserError: on all workers, what there is cannot be read, or the run not be written, on one.
        """
        self.checkpoints.attempt, name = self.ranks.from_first(lambda: (self.fence.take(), self.checkpoints.newest()))
        self.ranks.together(lambda: self._go_back(run, name))
        return name is not None

    def stage_finished(self, run: ContinualRun, record: StageRecord) -> None:
        """Appends the decision, then begins to save the state it led to; at a task's end the model too, after the last stage alone.

        Raises:
            UserError: on all workers, what was begun before could not be saved on one, or the decision not be written.
            SupersededError: the run is another group's by now.
        """
        self.ranks.together(self._settle)
        self.rows.append(record_row(record))
        self.ranks.together(lambda: self._tell(record))
        # The model comes before the state: a state that says "task over" must find it.
        first = self._model_to_write(run) if run.stage_index == 0 else None
        if not run.done:
            self.checkpoints.save(len(self.rows), self.learner.state_dict(), {"run": run.state_dict(), "rows": self.rows}, first, self.fence.check)
        elif first is not None:
            self.checkpoints.begin(first)  # `done` takes the place of a last state; a kill before it is written costs one stage.

    def task_finished(self, run: ContinualRun, task_index: int) -> None:
        """Marks the end of the last task.

        Raises:
            UserError: on all workers, it could not be written.
            SupersededError: the run is another group's by now.
        """
        if not run.done:
            return
        self.ranks.together(self._settle)  # Nobody writes where the first one clears.
        self.ranks.together(lambda: self._end(task_index + 1))

    def close(self) -> None:
        """What is being saved is saved; for the way out, whatever the reason."""
        self.checkpoints.close()

    def _go_back(self, run: ContinualRun, name: str | None) -> None:
        """To checkpoint `name`, or the beginning; rows of stages after it go, these are tuned again."""
        if name is not None:
            with self.checkpoints.read(name) as (progress, tensors):
                run.load_state_dict(progress["run"])
                self.learner.load_state_dict(tensors)
            self.rows = progress["rows"]
        path = self.folder / "decisions.jsonl"
        if self.writes and (self.rows or path.exists()):
            with writing(path):
                write_jsonl(path, self.rows)

    def _settle(self) -> None:
        """What was begun to be saved is saved, of a run that is still ours."""
        self.fence.check()
        self.checkpoints.wait()
        self.fence.check()  # Waiting takes as long as a disk likes.

    def _tell(self, record: StageRecord) -> None:
        if self.writes:
            self._account_for(record)
            path = self.folder / "decisions.jsonl"
            with writing(path):
                write_jsonl(path, self.rows)

    def _end(self, num_tasks: int) -> None:
        if self.writes:
            with writing(self.folder / "done"):
                write_text(self.folder / "done", f"{num_tasks} tasks\n")
            (self.folder / ANSWERS).unlink(missing_ok=True)
            self.fence.remove()
            try:
                self.checkpoints.clear()
            except Exception as error:  # The run is over, whatever a file system far away raises.
                logger.warning("target.checkpoints: what lies in %s is of no more use, but could not be removed: %s", self.checkpoints.place, error)

    def _account_for(self, record: StageRecord) -> None:
        """Before anything else is written: a stage whose state is lost is tuned again, and then has two lines."""
        if self.account is not None:
            boundary, seconds = record.boundary, record.seconds
            wall = sum(value for phase, value in seconds.items() if phase != "cpu")
            cost = Cost(record.training_flops + record.validation_flops, self.workers * seconds.get("cpu", 0.0), self.gpus * wall)
            run = f"{self.folder.parent.name}/{self.folder.name}"
            with writing(self.account.path):
                self.account.add("tuning", f"{run}/task{boundary.task_index}/stage{boundary.stage_index}", "target", cost)

    def _model_to_write(self, run: ContinualRun) -> Callable[[], None] | None:
        """What writes the model as it is now, for the one worker that writes; all take part in gathering it."""
        finished = run.tasks[run.task_index - 1]
        # That task's first: only so many rows are shown, and nothing tells these weights from the task's before as it does.
        sources = [finished, *(source for source in run.visible if source is not finished)]
        fingerprint = Fingerprint.of(self.learner, [source.probe for source in sources])
        write = self.learner.model.snapshot(keep=self.writes)
        path = self.folder / "checkpoints" / f"task{run.task_index - 1}"

        def fill(folder: Path) -> None:
            try:
                write_model(write, self.base_folder, folder)
                fingerprint.write(folder)
            except Exception as error:  # Whatever transformers, its tokenizers or safetensors raise: a new group of workers would meet the same.
                raise UserError(
                    f"target: could not write the tuned model to {str(path)!r} ({type(error).__name__}: {error}); "
                    "the stage boundary before is kept: mend what it names, or make room, and run the same command again"
                ) from error
            self.fence.check()  # That others may have come since this began to be written.

        return partial(write_folder, path, fill) if self.writes else None
