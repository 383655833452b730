"""What can be watched while a run or a service goes on: every metric's name, once, and where its values go.

    telemetry.record(REPLAY_SHARE, 0.38, run="demo", …) → ray.util.metrics → Prometheus → cluster/observability/dashboard.json

Names are part of the interface: dashboards and alerts outlive versions. Tags take few values (runs, methods, configured sources, served
controllers), never what a caller may send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)
"""Bounds of a histogram of answers."""
MINUTES = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
"""Bounds of a histogram of stages, in seconds."""


@dataclass(frozen=True)
class Metric:
    """One thing that is measured."""

    name: str
    kind: Literal["Counter", "Gauge", "Histogram"]
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    """Histograms only: upper bounds of the buckets."""

    @property
    def exported(self) -> tuple[str, ...]:
        """Names that Prometheus sees: Ray puts `ray_` before, and a counter ends in `_total`."""
        endings = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_count", "_sum")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings[self.kind])


_RUN, _TARGET = ("run",), ("run", "method", "seed")

REQUESTS = Metric("proxymix_requests", "Counter", "Requests answered by the service", ("route", "status"))
REQUEST_SECONDS = Metric("proxymix_request_seconds", "Histogram", "From the first byte of a request to the last of its answer", ("route",), SECONDS)
DECISIONS = Metric("proxymix_decisions", "Counter", "Mixtures decided by the service", ("controller", "version"))
DECISIONS_IN_FLIGHT = Metric("proxymix_decisions_in_flight", "Gauge", "Decisions being computed by one replica")
RELOAD_FAILURES = Metric("proxymix_reload_failures", "Counter", "Config updates that a replica did not take over")

STAGES = Metric("proxymix_stages", "Counter", "Stages a target was tuned", _TARGET)
FALLBACKS = Metric("proxymix_fallbacks", "Counter", "Stages tuned with the declared fallback mixture", _TARGET)
REPLAY_SHARE = Metric("proxymix_replay_share", "Gauge", "Mass of the mixture that is not on the current task", _TARGET)
MIXTURE_WEIGHT = Metric("proxymix_mixture_weight", "Gauge", "Share of a source in the last stage", (*_TARGET, "source"))
SOURCE_LOSS = Metric("proxymix_source_loss", "Gauge", "Last validation loss of a source, nats per answer token", (*_TARGET, "source"))
STAGE_SECONDS = Metric("proxymix_stage_seconds", "Histogram", "Wall-clock of a stage by phase", (*_TARGET, "phase"), MINUTES)

EVALUATION_LAG = Metric("proxymix_evaluation_lag", "Gauge", "Checkpoints that wait for their score", _RUN)
REBUILT_ENGINES = Metric(
    "proxymix_rebuilt_engines", "Counter", "Evaluation engines that did not answer as the trainer's model, and were rebuilt", _RUN
)
ITERATIONS = Metric("proxymix_iterations", "Counter", "Iterations of the controller's training", _RUN)
TRAINING_SCORE = Metric("proxymix_training_score", "Gauge", "Mean score of the last iteration's episodes", _RUN)
DROPPED_EPISODES = Metric("proxymix_dropped_episodes", "Counter", "Episodes lost with an env runner that died or was too slow, and run again", _RUN)

METRICS = (
    *(REQUESTS, REQUEST_SECONDS, DECISIONS, DECISIONS_IN_FLIGHT, RELOAD_FAILURES),
    *(STAGES, FALLBACKS, REPLAY_SHARE, MIXTURE_WEIGHT, SOURCE_LOSS, STAGE_SECONDS),
    *(EVALUATION_LAG, REBUILT_ENGINES, ITERATIONS, TRAINING_SCORE, DROPPED_EPISODES),
)
"""All there are."""


class Telemetry:
    """Hands values to a library of metrics, or to nobody."""

    def __init__(self, library: Any = None) -> None:
        """Args: `library` has `Counter`, `Gauge` and `Histogram` as `ray.util.metrics` has them; None: values are forgotten."""
        self.library = library
        self._instruments: dict[str, Any] = {}

    def record(self, metric: Metric, value: float = 1.0, **tags: str) -> None:
        """Adds to a counter, sets a gauge, or puts a value into a histogram; `tags` are exactly the metric's."""
        if self.library is None:
            return
        if metric.name not in self._instruments:
            self._instruments[metric.name] = self._build(metric)
        instrument = self._instruments[metric.name]
        if metric.kind == "Counter":
            instrument.inc(value, tags)
        elif metric.kind == "Gauge":
            instrument.set(value, tags)
        else:
            instrument.observe(value, tags)

    def _build(self, metric: Metric) -> Any:
        bounds = {"boundaries": list(metric.boundaries)} if metric.kind == "Histogram" else {}
        return getattr(self.library, metric.kind)(metric.name, description=metric.description, tag_keys=metric.tags, **bounds)
