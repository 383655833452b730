"""The Grafana dashboard, made from the names in `proxymix.telemetry`: `python -m cluster.observability.dashboard` writes dashboard.json anew.

ROWS (title, query, unit) → build_dashboard → dashboard.json → Grafana, Dashboards → Import
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from proxymix import telemetry
from proxymix.artifacts import write_json
from proxymix.telemetry import Metric

PATH = Path(__file__).parent / "dashboard.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
QUEUED = "ray_serve_deployment_queued_queries"
"""Serve's own; the queue is in front of the replicas, so they cannot count it."""
PROXY_REQUESTS = "ray_serve_num_http_requests_total"
"""Serve's own; its proxy answers by itself where the queue is full or a replica died."""
CALLERS = PROXY_REQUESTS + '{route!~"/-/.*"}'
"""Without those for Serve's own paths."""
RUNS = '{run=~"$run"}'
WIDTH, HEIGHT = 8, 8
"""Of a panel; Grafana's grid is 24 wide."""


@dataclass(frozen=True)
class Panel:
    """One time series plot."""

    title: str
    query: str
    legend: str = ""
    unit: str = "short"
    stacked: bool = False


def _rate(metric: Metric, by: str, filters: str = "") -> str:
    return f"sum by ({by}) (rate({metric.exported[0]}{filters}[$__rate_interval]))"


def _quantile(metric: Metric, quantile: float, by: str, filters: str = "") -> str:
    return f"histogram_quantile({quantile}, {_rate(metric, f'le, {by}', filters)})"


def _last(metric: Metric, filters: str = RUNS) -> str:
    return f"{metric.exported[0]}{filters}"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Service": (
        Panel("Decisions per second", _rate(telemetry.DECISIONS, "controller, version"), "{{controller}}@{{version}}", "reqps"),
        Panel("Answers by status", _rate(telemetry.REQUESTS, "status"), "{{status}}", "reqps", stacked=True),
        Panel("Request time, p99", _quantile(telemetry.REQUEST_SECONDS, 0.99, "route"), "{{route}}", "s"),
        Panel("Queued before the replicas", f'sum({QUEUED}{{deployment="controller"}})', "queued"),
        Panel("Being computed", f"sum({_last(telemetry.DECISIONS_IN_FLIGHT, '')})", "decisions"),
        Panel("Config updates not taken", f"sum({_last(telemetry.RELOAD_FAILURES, '')})", "failures"),
        Panel("Answers of Serve's proxy", f"sum by (status_code) (rate({CALLERS}[$__rate_interval]))", "{{status_code}}", "reqps", stacked=True),
    ),
    "Target runs": (
        Panel("Mixture", _last(telemetry.MIXTURE_WEIGHT), "{{method}}/seed{{seed}} {{source}}", "percentunit", stacked=True),
        Panel("Replay share", _last(telemetry.REPLAY_SHARE), "{{method}}/seed{{seed}}", "percentunit"),
        Panel("Validation loss", _last(telemetry.SOURCE_LOSS), "{{method}}/seed{{seed}} {{source}}"),
        Panel("Stages", f"sum by (run, method) ({_last(telemetry.STAGES)})", "{{run}}/{{method}}"),
        Panel("Fallbacks", f"sum by (run, method) ({_last(telemetry.FALLBACKS)})", "{{run}}/{{method}}"),
        Panel("Stage time, median", _quantile(telemetry.STAGE_SECONDS, 0.5, "phase", RUNS), "{{phase}}", "s"),
    ),
    "Controller training and evaluation": (
        Panel("Training score", _last(telemetry.TRAINING_SCORE), "{{run}}"),
        Panel("Iterations per minute", f"60 * {_rate(telemetry.ITERATIONS, 'run', RUNS)}", "{{run}}"),
        Panel("Episodes lost with an env runner", f"sum by (run) ({_last(telemetry.DROPPED_EPISODES)})", "{{run}}"),
        Panel("Checkpoints waiting for a score", _last(telemetry.EVALUATION_LAG), "{{run}}"),
        Panel("Evaluation engines rebuilt", f"sum by (run) ({_last(telemetry.REBUILT_ENGINES)})", "{{run}}"),
    ),
}


def build_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "PROXYMIX",
        "uid": "proxymix",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_data_source(), _run_variable()]},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    numbers, top = count(1), 0
    for title, panels in ROWS.items():
        yield {"id": next(numbers), "type": "row", "title": title, "collapsed": False, "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}, "panels": []}
        top += 1
        for index, panel in enumerate(panels):
            across, down = index % 3, index // 3
            yield _plot(panel, next(numbers), {"x": across * WIDTH, "y": top + down * HEIGHT, "w": WIDTH, "h": HEIGHT})
        top += -(-len(panels) // 3) * HEIGHT


def _plot(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    look = {"fillOpacity": 40 if panel.stacked else 0, "stacking": {"mode": "normal" if panel.stacked else "none"}, "showPoints": "never"}
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "datasource": SOURCE,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": look}, "overrides": []},
        "targets": [{"refId": "A", "datasource": SOURCE, "expr": panel.query, "legendFormat": panel.legend}],
    }


def _data_source() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _run_variable() -> dict[str, Any]:
    query = f"label_values({telemetry.STAGES.exported[0]}, run)"
    every = {"includeAll": True, "allValue": ".*", "multi": True, "current": {"text": "All", "value": "$__all"}}
    return {"name": "run", "type": "query", "label": "Run", "datasource": SOURCE, "query": query, "definition": query, "refresh": 2, **every}


if __name__ == "__main__":
    write_json(PATH, build_dashboard())
