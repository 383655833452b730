"""The dashboard, the alerts and the scrape config speak of metrics that exist, and what is recorded is what they speak of."""

import json
import re
from pathlib import Path

import pytest
import ray
import yaml
from fake_metrics import FakeMetrics
from fake_service import LossProportional, client, example, post
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from cluster.local import metrics_targets
from cluster.observability.dashboard import PATH, PROXY_REQUESTS, QUEUED, ROWS, build_dashboard
from proxymix.telemetry import METRICS, Metric, Telemetry

FOLDER = PATH.parent
EXPORTED = {name for metric in METRICS for name in metric.exported}
SERVES = {QUEUED: {"deployment"}, PROXY_REQUESTS: {"application", "method", "route", "status_code"}}
"""Ray Serve's own metrics that are used, with the labels they have."""
NAMES = re.compile(r"\bray_\w+")


def panels():
    return [panel for panel in json.loads(PATH.read_text())["panels"] if panel["type"] != "row"]


def test_the_committed_dashboard_is_the_one_that_is_built():
    assert json.loads(PATH.read_text()) == build_dashboard(), "python -m cluster.observability.dashboard writes it anew"


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panels_metric_exists(panel):
    (target,) = panel["targets"]
    named = set(NAMES.findall(target["expr"]))
    assert named
    assert named <= EXPORTED | SERVES.keys()


def labels(query, legend=""):
    """That a query selects or groups by, or its legend shows; `le` is every histogram's."""
    grouped = re.findall(r"\b(?:by|without) \(([^)]*)\)", query)
    selected = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", query)
    shown = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", legend)
    return {label.strip() for group in grouped for label in group.split(",")} | set(selected) | set(shown)


def tags(query):
    """Of every metric that the query names."""
    named = set(NAMES.findall(query))
    return [{*metric.tags, "le"} for metric in METRICS if named & set(metric.exported)] + [SERVES[name] for name in named & SERVES.keys()]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panels_labels_are_on_its_metrics(panel):
    (target,) = panel["targets"]
    assert tags(target["expr"])
    for known in tags(target["expr"]):
        assert labels(target["expr"], target["legendFormat"]) <= known


def test_every_alerts_labels_are_on_its_metrics():
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert tags(rule["expr"])
            for known in tags(rule["expr"]):
                assert labels(rule["expr"], rule["annotations"]["summary"]) <= known


def test_an_alert_hears_a_counters_first_count():
    """Prometheus sees no increase where a series begins, and a counter's begins with its first count."""
    for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            for counter in re.findall(r"increase\((\w+)\[15m\]\)", rule["expr"]):
                assert f"({counter} unless {counter} offset 15m) or increase({counter}[15m]) > 0" == rule["expr"]


def test_labels_are_found_wherever_they_stand():
    found = labels('sum by (le, run) (rate(x_bucket{method=~"$m", seed!="1"}[5m]))', "{{source}} {{ $labels.phase }}")
    assert found == {"le", "run", "method", "seed", "source", "phase"}


def test_the_variable_of_the_dashboard_is_a_label():
    (variable,) = [variable for variable in json.loads(PATH.read_text())["templating"]["list"] if variable["type"] == "query"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
    assert all(label in known for known in tags(metric))
    assert tags(metric)


def test_serve_still_has_the_metrics_that_are_used():
    source = "".join(path.read_text() for path in (Path(ray.__file__).parent / "serve" / "_private").glob("*.py"))
    assert f'"{QUEUED.removeprefix("ray_")}"' in source
    assert 'tag_keys=("route", "method", "application", "status_code")' in source
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards" / "serve_dashboard_panels.py"
    assert f"({PROXY_REQUESTS}{{" in panels.read_text()  # Ray's own dashboard asks for it by the name that Prometheus sees.


def test_every_metric_has_a_panel():
    shown = set(NAMES.findall(PATH.read_text()))
    assert [metric.name for metric in METRICS if not shown & set(metric.exported)] == []


def test_no_panel_covers_another():
    places = [panel["gridPos"] for panel in json.loads(PATH.read_text())["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels()}) == sum(map(len, ROWS.values()))


def test_alerts_and_scrape_config():
    alerts = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert set(NAMES.findall(" ".join(expressions))) <= EXPORTED | SERVES.keys()
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["file_sd_configs"][0]["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_a_cluster_of_our_own_tells_its_own_file(tmp_path):
    """That Ray really writes it there is seen in test_cluster_jobs.py."""
    assert metrics_targets(tmp_path) == tmp_path / "ray" / PROMETHEUS_SERVICE_DISCOVERY_FILE


def test_names_are_stable_and_well_formed():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert sorted(metric.name for metric in METRICS) == [
        "proxymix_decisions",
        "proxymix_decisions_in_flight",
        "proxymix_dropped_episodes",
        "proxymix_evaluation_lag",
        "proxymix_fallbacks",
        "proxymix_iterations",
        "proxymix_mixture_weight",
        "proxymix_rebuilt_engines",
        "proxymix_reload_failures",
        "proxymix_replay_share",
        "proxymix_request_seconds",
        "proxymix_requests",
        "proxymix_source_loss",
        "proxymix_stage_seconds",
        "proxymix_stages",
        "proxymix_training_score",
    ]
    assert [metric.name for metric in METRICS if (metric.kind == "Histogram") != bool(metric.boundaries)] == []


def test_telemetry_hands_on_what_each_kind_takes():
    library = FakeMetrics()
    telemetry = Telemetry(library)
    telemetry.record(Metric("a", "Counter", "", ("x",)), 2, x="1")
    telemetry.record(Metric("b", "Gauge", ""), 0.5)
    telemetry.record(Metric("c", "Histogram", "", (), (1.0,)), 3.0)
    assert library.values == [("a", 2, {"x": "1"}), ("b", 0.5, {}), ("c", 3.0, {})]
    Telemetry().record(Metric("a", "Counter", ""))


def test_the_service_counts_what_it_answers():
    library = FakeMetrics()
    service = client(LossProportional(), telemetry=Telemetry(library), max_sources_per_request=3)
    post(service, example())
    post(service, {})
    service.get("/nobody/knows/../this")
    counted = [(name, tags) for name, _, tags in library.values if name in ("proxymix_requests", "proxymix_decisions")]
    assert counted == [
        ("proxymix_decisions", {"controller": "fake", "version": "abababababab"}),
        ("proxymix_requests", {"route": "/v1/decisions", "status": "200"}),
        ("proxymix_requests", {"route": "/v1/decisions", "status": "422"}),
        ("proxymix_requests", {"route": "none", "status": "404"}),
    ]
    assert [value for name, value, _ in library.values if name == "proxymix_decisions_in_flight"] == [0, 1, 0]
