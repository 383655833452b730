"""The evidence table: measures by hand, the bootstrap on a known case, and what a reader is shown."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from proxymix.benchmark_rows import MARKS, NOTES, family
from proxymix.benchmark_table import MEASURES, benchmark_markdown, benchmark_metrics, case_measures, paired_difference
from proxymix.report.benchmark_plots import plot_differences, plot_trade_off

ROOT = Path(__file__).resolve().parents[1]
REPORT = {
    "tasks": ["a", "b"],
    "anchors": ["safety"],
    "matrix": [[0.9, 0.1], [0.6, 0.8]],
    "anchor_accuracy": {"safety": [0.5, 0.4]},
    "safety": [None, {"refusal_accuracy": 0.5, "benign_compliance": 0.75, "balanced": 0.625, "selectivity": 0.25}],
}
RESULT = {"report": REPORT, "replay_share": 0.3, "flops": 120}


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
    assert [line.split(" | ")[0].lstrip("| ") for line in lines[4:7]] == ["Ramp, chosen c", "**ProxyMix**", "Random 30\u00a0%"]
    assert "−" in lines[4]  # A minus, and a dash for what is not known.
    assert "| – |" in lines[4]


def partial_metrics():
    measures = {"proxymix": [row(J=0.9), row(J=0.7)], "oracle": [row(J=0.8), None], "doremi": [row(J=0.8), row(J=0.8)], "no_replay": [row(), row()]}
    return benchmark_metrics(["long/seed0", "style/seed0"], measures, "proxymix")


def test_a_row_of_some_cases_is_compared_on_these_alone():
    oracle = partial_metrics()["methods"]["oracle"]
    assert oracle["num_cases"] == 1
    assert oracle["per_case"]["J"] == [0.8, None]
    assert oracle["mean"]["J"]["mean"] == 0.8
    assert oracle["reference_minus"]["J"]["mean"] == pytest.approx(0.1)  # Over both cases of ProxyMix it would be 0.


def test_a_row_of_some_cases_stands_apart_and_an_oracle_is_marked():
    lines = benchmark_markdown(partial_metrics()).splitlines()
    somewhere = lines.index(next(line for line in lines if line.startswith("On some of the cases only")))
    (place,) = [index for index, line in enumerate(lines) if line.startswith("| Oracle target RL†")]
    assert place > somewhere
    assert lines[place].split(" | ")[1] == "1"
    assert any(line.startswith("† oracle, no rival") for line in lines)
    assert not any(line.startswith("¶") for line in lines)  # No O-LoRA, no note of it.


def test_every_mark_has_its_note_and_families_are_told_apart():
    assert set(MARKS.values()) == set(NOTES)
    found = {method: family(method) for method in ("headroom", "proxymix_same", "random_realised", "doremi")}
    assert found == {"headroom": "oracle", "proxymix_same": "proxymix", "random_realised": "control", "doremi": "rival"}


def test_table_and_plots_from_metrics_by_one_command(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(partial_metrics()))
    command = [sys.executable, "-m", "proxymix.benchmark_table", str(tmp_path / "metrics.json")]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "table.md").read_text() == benchmark_markdown(partial_metrics())
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("differences.png", "trade_off.png"))
    (tmp_path / "metrics.json").write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr.splitlines()[0][:30]) == (1, "error: metrics: must be the me")


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_plots_name_every_row_they_can_show():
    differences, trade_off = plot_differences(partial_metrics()), plot_trade_off(partial_metrics())
    assert [label.get_text() for label in differences.axes[0].get_yticklabels()] == ["No replay", "Oracle target RL†", "DoReMi‡"]
    assert sum("n = 1" in text for text in texts(differences)) == 1
    assert sorted(texts(trade_off)) == ["DoReMi‡", "No replay", "ProxyMix"]  # The oracle's mean is of other cases.
