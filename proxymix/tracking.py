"""Where a run's numbers go beside its own folder: MLflow, TensorBoard or Weights & Biases behind one small Protocol; off by default.

    StageRecord → stage_values → Tracker.log(values, step) → a queue → a thread → the tracker's own store

The run folder stays the truth. A tracker that fails, hangs or cannot keep up is told once and left alone: nothing about a run may depend on it.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from proxymix.errors import UserError
from proxymix.tuning_config import Strict
from proxymix.types import StageRecord

logger = logging.getLogger(__name__)

TrackerName = Literal["none", "mlflow", "tensorboard", "wandb"]
LIBRARIES: dict[str, str] = {"mlflow": "mlflow", "tensorboard": "tensorboardX", "wandb": "wandb"}
"""What each is imported from. TensorBoard's files are written by the library that Ray Tune brings; `tensorboard` itself is only the viewer."""

MAX_WAITING = 1000
"""Stages or iterations that a slow tracker may be behind; further ones are left out of it."""
CLOSE_S = 20.0
"""What the end of a run waits for a tracker to catch up."""


class TrackingConfig(Strict):
    """Where numbers go beside the run folder."""

    tracker: TrackerName = "none"
    """`mlflow` and `wandb` want their library installed: `pip install proxymix[mlflow]`."""
    address: str | None = None
    """MLflow's tracking URI, or the entity of Weights & Biases; None: as the library's own environment variables say. Keys belong there too."""


class Tracker(Protocol):
    """One run in a tracker's store."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """`values` at `step`, which grows."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def check_tracker(tracking: TrackingConfig) -> None:
    """Tells what is missing before anything is spent.

    Raises:
        UserError: the tracker's library is not installed.
    """
    if tracking.tracker != "none":
        _library(tracking.tracker)


def open_tracker(tracking: TrackingConfig, project: str, run: str, folder: Path) -> Tracker:
    """The tracker that the config names, which opens a run and takes values in a thread of its own: none of it keeps the caller.

    Args:
        tracking: of the config.
        project: what groups runs, the run's name in the config.
        run: one target run or training in it, `proxymix/seed0`.
        folder: where files go, for a tracker that writes files.

    Raises:
        UserError: the tracker's library is not installed.
    """
    if tracking.tracker == "none":
        return NoTracker()
    return _QueuedTracker(tracking.tracker, partial(_OPENERS[tracking.tracker], _library(tracking.tracker), tracking.address, project, run, folder))


def stage_values(record: StageRecord) -> dict[str, float]:
    """A stage's numbers under the names they have in every tracker."""
    weights = {f"weight/{name}": float(weight) for name, weight in record.decision.weights.items()}
    losses = {f"loss/{source.name}": source.losses[-1] for source in record.boundary.sources}
    return {
        "replay_share": record.replay_share,
        "training_loss": record.training_loss,
        "fallback": float(record.decision.fallback is not None),
        **weights,
        **losses,
    }


def stage_step(record: StageRecord) -> int:
    """Stages before this one, over all tasks."""
    return record.boundary.task_index * record.boundary.num_stages + record.boundary.stage_index


class NoTracker:
    """Keeps nothing."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class _QueuedTracker:
    """A tracker that is opened, told and closed by one thread, in order: a server that does not answer keeps that thread alone."""

    def __init__(self, name: str, opens: Callable[[], Tracker]) -> None:
        self.name, self.opens = name, opens
        self._waiting: SimpleQueue[tuple[Mapping[str, float], int] | None] = SimpleQueue()
        self._is_off = self._is_behind = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)  # Nor does it keep the process at its end.
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._is_off:
            return
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put((values, step))
        elif not self._is_behind:
            self._is_behind = True
            logger.warning("tracking.tracker: %s is %d behind, what it cannot take is left out of it from step %d on", self.name, MAX_WAITING, step)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning("tracking.tracker: %s has not caught up in %.0f s, its last values may be missing there", self.name, CLOSE_S)

    def _work(self) -> None:
        what = "could not be opened, the run goes on without it"
        try:
            tracker = self.opens()
            what = "is off from here"
            while (told := self._waiting.get()) is not None:
                tracker.log(*told)
            what = "could not be closed"
            tracker.close()
        except Exception as error:
            self._is_off = True
            logger.warning("tracking.tracker: %s %s: %s", self.name, what, error)


class _TensorBoard:
    def __init__(self, library: Any, address: str | None, project: str, run: str, folder: Path) -> None:
        self.writer = library.SummaryWriter(str(folder / "tensorboard" / run))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _MLflow:
    """Through the client: its module-level functions would keep one run per process."""

    def __init__(self, library: Any, address: str | None, project: str, run: str, folder: Path) -> None:
        self.client = library.MlflowClient(tracking_uri=address)
        experiment = self.client.get_experiment_by_name(project)
        identity = experiment.experiment_id if experiment is not None else self.client.create_experiment(project)
        self.run = self.client.create_run(identity, run_name=run).info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run, re.sub(r"[^\w./ -]", "_", name), value, step=step)  # What MLflow allows in a name.

    def close(self) -> None:
        self.client.set_terminated(self.run)


class _WeightsAndBiases:
    def __init__(self, library: Any, address: str | None, project: str, run: str, folder: Path) -> None:
        self.run = library.init(project=project, name=run, entity=address, dir=str(folder), reinit="create_new")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


_OPENERS: dict[str, Callable[[Any, str | None, str, str, Path], Tracker]] = {
    "mlflow": _MLflow,
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


def _library(tracker: str) -> Any:
    try:
        return importlib.import_module(LIBRARIES[tracker])
    except ImportError as error:
        raise UserError(
            f"tracking.tracker: {tracker} needs {LIBRARIES[tracker]} ({error}); pip install 'proxymix[{tracker}]', or set it to none"
        ) from error
