"""The evidence table: measures by hand, the bootstrap on a known case, and what a reader is shown."""

import numpy as np
import pytest
from scipy.stats import norm

from proxymix.benchmark_table import MEASURES, benchmark_markdown, benchmark_metrics, case_measures, paired_difference

REPORT = {
    "tasks": ["a", "b"],
    "anchors": ["safety"],
    "matrix": [[0.9, 0.1], [0.6, 0.8]],
    "anchor_accuracy": {"safety": [0.5, 0.4]},
    "safety": [None, {"refusal_accuracy": 0.5, "benign_compliance": 0.75, "balanced": 0.625, "selectivity": 0.25}],
}
RESULT = {"report": REPORT, "replay_share": 0.3, "cost": {"flops": 120}}


def row(**values):
    return dict.fromkeys(MEASURES, 0.5) | values


def test_measures_of_a_case_by_hand():
    measured = case_measures(RESULT, policy_flops=50, unit_flops=100)
    assert tuple(measured) == MEASURES
    assert measured == pytest.approx(
        {"AA": 0.7, "FGT": 0.3, "NTA": 0.85, "BWT": -0.3, "RA": 0.5, "BC": 0.75, "SS": 0.25}
        # J: the two tasks and the anchor at the end.
        | {"J": (0.6 + 0.8 + 0.4) / 3, "replay_share": 0.3, "policy_cost": 0.5, "total_cost": 1.7}
    )


def test_the_interval_is_that_of_the_paired_differences():
    rng = np.random.default_rng(1)
    noise, order = rng.normal(size=48), rng.normal(scale=10, size=48)  # The order's effect is shared, and must not be seen.
    difference = paired_difference(0.5 + order + noise, order)
    error = np.std(noise, ddof=1) / np.sqrt(48)
    assert difference["mean"] == pytest.approx(0.5 + noise.mean())
    for end, sign in (("low", -1), ("high", 1)):
        assert difference[end] == pytest.approx(difference["mean"] + sign * norm.ppf(0.975) * error, abs=0.25 * error)


def test_the_same_everywhere_has_no_spread():
    assert paired_difference([0.5, 0.7, 0.6], [0.4, 0.6, 0.5]) == {"mean": 0.1, "low": 0.1, "high": 0.1}
    assert paired_difference([0.5], [0.25]) == {"mean": 0.25, "low": 0.25, "high": 0.25}


def metrics():
    measures = {
        "proxymix": [row(J=0.9, AA=0.8), row(J=0.7, AA=0.6)],
        "random_30": [row(J=0.6, AA=0.7), row(J=0.6, AA=0.7)],
        "ramp_chosen": [row(J=0.95, SS=None), row(J=0.95)],
    }
    return benchmark_metrics(["long/seed0", "long/seed1"], measures, "proxymix")


def test_metrics_compare_every_row_with_the_reference():
    methods = metrics()["methods"]
    assert methods["proxymix"]["reference_minus"] == {}
    assert methods["random_30"]["reference_minus"]["J"]["mean"] == pytest.approx(0.2)
    assert methods["random_30"]["reference_minus"]["AA"]["mean"] == pytest.approx(0.0)
    assert methods["random_30"]["mean"]["J"] == {"mean": 0.6, "se": 0.0}
    assert methods["random_30"]["per_case"]["AA"] == [0.7, 0.7]


def test_what_a_case_lacks_is_neither_averaged_nor_compared():
    found = metrics()["methods"]["ramp_chosen"]
    assert found["mean"]["SS"] is None
    assert "SS" not in found["reference_minus"]


def test_a_reader_sees_the_best_first_and_the_reference_marked():
    lines = benchmark_markdown(metrics()).splitlines()
    assert lines[0].startswith("2 paired cases")
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[4:]] == ["Ramp chosen", "**ProxyMix**", "Random 30\u00a0%"]
    assert "−" in lines[4]  # A minus, and a dash for what is not known.
    assert "| – |" in lines[4]
