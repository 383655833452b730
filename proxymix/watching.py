"""A journal that is watched: what a target run or a training writes down is also told to metrics and to a tracker, after it is safe on disk.

run_continual → WatchedJournal → the run's own journal, then Telemetry and Tracker
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from proxymix.continual import ContinualRun, Journal
from proxymix.telemetry import (
    DROPPED_EPISODES,
    FALLBACKS,
    ITERATIONS,
    MIXTURE_WEIGHT,
    REPLAY_SHARE,
    SOURCE_LOSS,
    STAGE_SECONDS,
    STAGES,
    TRAINING_SCORE,
    Telemetry,
)
from proxymix.tracking import NoTracker, Tracker, stage_step, stage_values
from proxymix.types import StageRecord

logger = logging.getLogger(__name__)
PHASES = ("train", "validate", "decide")


class Watch:
    """Metrics and a tracker for one target run or training. Never raises: nobody who watches may stop what is watched."""

    def __init__(self, telemetry: Telemetry, tracker: Tracker, **tags: str) -> None:
        """Args: `tags` of every metric: run, and for a target run method and seed."""
        self.telemetry, self.tracker, self.tags = telemetry, tracker, tags

    def stage(self, record: StageRecord) -> None:
        """After a stage of a target run."""
        self._telemetry(self._record_stage, record)
        self._log(stage_values(record), stage_step(record))

    def iteration(self, row: Mapping[str, Any]) -> None:
        """After an iteration of a controller's training; `row` of its learning curve."""
        self._telemetry(self._record_iteration, row)
        self._log({key: float(value) for key, value in row.items() if isinstance(value, int | float)}, row["iteration"])

    def close(self) -> None:
        """What was watched is over."""
        try:
            self.tracker.close()
        except Exception:
            logger.warning("the tracker could not be closed", exc_info=True)

    def _record_stage(self, record: StageRecord) -> None:
        put, tags = self.telemetry.record, self.tags
        put(STAGES, 1, **tags)
        if record.decision.fallback is not None:
            put(FALLBACKS, 1, **tags)
        put(REPLAY_SHARE, record.replay_share, **tags)
        for name, weight in record.decision.weights.items():
            put(MIXTURE_WEIGHT, float(weight), source=name, **tags)
        for source in record.boundary.sources:
            put(SOURCE_LOSS, source.losses[-1], source=source.name, **tags)
        for phase in PHASES:
            if phase in record.seconds:
                put(STAGE_SECONDS, record.seconds[phase], phase=phase, **tags)

    def _record_iteration(self, row: Mapping[str, Any]) -> None:
        self.telemetry.record(ITERATIONS, 1, **self.tags)
        self.telemetry.record(TRAINING_SCORE, row["score_mean"], **self.tags)
        if row["num_dropped"]:
            self.telemetry.record(DROPPED_EPISODES, row["num_dropped"], **self.tags)

    def _telemetry(self, record: Any, what: Any) -> None:
        try:
            record(what)
        except Exception:
            logger.warning("metrics are off from here", exc_info=True)
            self.telemetry = Telemetry()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        try:
            self.tracker.log(values, step)
        except Exception:
            logger.warning("the tracker is off from here", exc_info=True)
            self.tracker = NoTracker()


class WatchedJournal:
    """A journal and who watches it; implements `proxymix.continual.Journal`."""

    def __init__(self, journal: Journal, watch: Watch) -> None:
        """Args: `journal` writes first."""
        self.journal, self.watch = journal, watch

    def stage_finished(self, run: ContinualRun, record: StageRecord) -> None:
        """Written, then told."""
        self.journal.stage_finished(run, record)
        self.watch.stage(record)

    def task_finished(self, run: ContinualRun, task_index: int) -> None:
        """Written."""
        self.journal.task_finished(run, task_index)
