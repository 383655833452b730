"""What the page says in words, and where its labels and colours are."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxymix.report.theme import HUES, INK, NEUTRALS, label_right, new_axes, source_colours, spread
from proxymix.report.verdict import gate_sentence, verdict


def _metrics(**methods):
    def row(pair):
        values = {"AA": pair, "FGT": [0.1] * len(pair), "NTA": pair, "SS": [None] * len(pair)}
        return {key: {"mean": None if None in v else sum(v) / len(v), "se": 0.01, "per_seed": v} for key, v in values.items()}

    return {"anchors": [], "methods": {name: row(pair) for name, pair in methods.items()}}


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            {"proxymix": [0.70, 0.72], "random_30": [0.60, 0.63], "no_replay": [0.1, 0.1]},
            "9.5 ± 0.5 points above the best baseline, Random 30 % (61.5 ± 1.0);",
        ),
        ({"proxymix": [0.50, 0.53], "random_30": [0.60, 0.62]}, "9.5 ± 0.5 points below the best baseline"),
        ({"proxymix": [0.60, 0.70], "random_30": [0.61, 0.64]}, "less than two standard errors apart"),
        ({"proxymix": [0.60], "random_30": [0.55]}, "on one seed, so the difference has no known error"),
        ({"proxymix": [0.60, 0.60], "random_30": [0.60, 0.60]}, "level with the best baseline"),
        ({"proxymix": [0.60, 0.60]}, "no baseline has been scored"),
        ({"random_30": [0.60, 0.60]}, "ProxyMix has not been scored; the best baseline so far is Random 30 %"),
        ({"proxymix": [None, None], "random_30": [0.6, 0.6]}, "ProxyMix has not been scored"),
    ],
)
def test_verdict_says_only_what_the_numbers_say(methods, said):
    sentence = verdict(_metrics(**methods)).replace("\u00a0", " ")
    assert said in sentence
    assert "safety" not in sentence


def test_gate_in_words():
    found = {
        "rho": 0.4,
        "interval": [0.1, 0.6],
        "p_value": 0.2,
        "ceiling": None,
        "partial_rho": 0.1,
        "passed": False,
        "reasons": ["rho is below 0.6"],
    }
    assert gate_sentence(found).endswith("The gate is closed: the proxy is no guide to this target. Rho is below 0.6.")
    assert "The gate is open" in gate_sentence(found | {"passed": True, "ceiling": 0.9, "reasons": []})


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.1, 1))
def test_labels_never_touch_nor_leave(positions, gap):
    placed = spread(sorted(positions), gap, 0.0, 10.0)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= -1e-9
    assert placed[-1] <= 10 + 1e-9


@pytest.mark.parametrize(("limits", "height"), [({}, 0.5), ({"ylim": (0, 40)}, 0.25)])
def test_a_label_stands_where_its_series_ends(limits, height):
    _, axes = new_axes("title", "unit")
    axes.margins(y=0)
    axes.plot([0, 1], [0, 20])
    axes.set(**limits)
    label_right(axes, [(10.0, "half", INK)])
    assert axes.texts[-1].get_position()[1] == pytest.approx(height)


def test_one_colour_per_source():
    colours = source_colours(["safety", "general", "third"], [f"task{i}" for i in range(7)])
    assert [colours["safety"], colours["general"]] == list(NEUTRALS)
    assert len(set(colours.values())) == 10 == len(NEUTRALS) + len(HUES)
