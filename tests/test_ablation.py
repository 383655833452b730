"""jobs.ablate: what its rows mean, its table and plot, and the whole of it on a smoke config."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from pydantic import ValidationError

from jobs.ablate import ablation_cases, check_settings, variant_cells
from proxymix.ablation_config import ROWS, AblationConfig
from proxymix.ablation_rows import noise_of, row_title, trained_as
from proxymix.ablation_table import ablation_markdown, mean_measures
from proxymix.account import Account
from proxymix.benchmark_table import MEASURES, benchmark_metrics
from proxymix.config import load_config
from proxymix.controllers.rivals import Found
from proxymix.errors import UserError
from proxymix.report.ablation_plots import plot_forest
from proxymix.report.theme import ACCENT, WARM, save_png

ROOT = Path(__file__).resolve().parents[1]
SMOKE_ROWS = "[without_normalisation,no_safety_reward,cadence_2,mean_schedule,mean_share,noisy_40]"
SMALL = (
    *(f"ablation.rows={SMOKE_ROWS}", "ablation.num_cases=2", "ablation.num_controllers=1", "ablation.lengths=[3]", "ablation.num_long_cases=2"),
    *("ablation.rivals=[ramp_10]", "evaluation.test_size=32"),
)


def config(*overrides):
    return load_config(ROOT / "configs" / "ablation.yaml", list(overrides))


def changed(before, after):
    """Paths of the keys whose values differ."""
    if not isinstance(before, dict):
        return set() if before == after else {()}
    return {(key, *rest) for key in before for rest in changed(before[key], after[key])}


@pytest.mark.parametrize(
    ("row", "paths"),
    [
        ("without_trend", {("controller", "without")}),
        ("without_normalisation", {("controller", "without")}),
        ("no_safety_reward", {("controller", "reward", "safety")}),
        ("flat", {("controller", "architecture"), ("controller", "ppo", "learning_rate")}),  # The step size of its own.
        ("cadence_4", {("controller", "decide_every")}),
        ("proxy_mini", {("proxy", "model", "preset")}),
    ],
)
def test_a_variant_differs_in_one_thing(row, paths):
    full = config()
    assert changed(full.model_dump(mode="json"), trained_as(full, row).model_dump(mode="json")) == paths


def test_the_other_rows_use_the_full_controller():
    others = [row for row in ROWS if trained_as(config(), row) is None]
    assert others == ["mean_schedule", "mean_share", "noisy_10", "noisy_30"]
    assert [noise_of(row) for row in others] == [0, 0, 0.1, 0.3]
    assert len({row_title(row) for row in ROWS}) == len(ROWS)


def test_every_group_and_what_the_paper_left_out_is_among_the_rows():
    assert {"without_trend", "without_normalisation", "no_safety_reward", "mean_schedule", "flat", "cadence_2", "cadence_4"} <= set(ROWS)
    assert len([row for row in ROWS if row.startswith("without_")]) == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ablation.world=train-1", r"ablation.world: must not be trained in, got train-1"),
        ("ablation.world=heldout-0", r"ablation.world: must be none that the benchmark's table is made in, got heldout-0"),
        ("ablation.world=base-2", r"ablation.world: must be none that base models are pre-trained on, got base-2"),
        ("ablation.rows=[without_brakes]", r"ablation.rows.0"),
        ("ablation.rows=[flat,flat]", r"rows must be unique"),
        ("ablation.rows=[proxy_nano]", r"must change something, got proxy_nano"),
        ("controller.architecture=flat ablation.rows=[without_regression]", r"without must be of trend, normalisation, loss, position"),
        ("controller.curriculum.num_tasks=99", r"controller.max_sources"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(override, message):
    with pytest.raises(UserError, match=message):
        check_settings(config(*override.split()))


def test_a_flat_controller_must_hold_the_longest_sequence():
    with pytest.raises(UserError, match=r"ablation.lengths: a flat controller of 12 sources cannot hold 14"):
        check_settings(config("controller.architecture=flat", "ablation.rows=[without_trend]"))


def test_cases_are_of_the_world_and_length_and_the_same_every_time():
    cases = ablation_cases(config(), 8, 3)
    assert [len(case.tasks) for case in cases] == [8, 8, 8]
    assert {task.world for case in cases for task in case.tasks} == {"heldout-1"}
    assert cases == ablation_cases(config(), 8, 3)
    assert cases[:2] == ablation_cases(config(), 8, 2)


def test_what_a_row_was_found_with_is_in_its_cells():
    settings = config("ablation.rows=[mean_share,noisy_10]", "ablation.num_controllers=2", "ablation.num_cases=1")
    averages = [(Found(numbers={"random_mean": 30.0}), 700), (Found(numbers={"random_mean": 40.0}), 900)]
    cells = variant_cells(settings, {"full": ["a", "b"]}, averages, ablation_cases(settings, 3, 1))
    assert [(cell.row, cell.seed, cell.found_flops) for cell in cells if cell.found_flops] == [("mean_share", 0, 700), ("mean_share", 1, 900)]


def measures(rng, shift=0.0, **missing):
    return {name: float(rng.uniform(0.4, 0.6)) + shift for name in MEASURES} | missing


def example():
    rng = np.random.default_rng(0)
    cases = [f"case{i}" for i in range(6)]
    rows = {"full": 0.1, "without_trend": 0.0, "flat": 0.3, "random_30": 0.1}
    variants = benchmark_metrics(cases, {row: [measures(rng, shift) for _ in cases] for row, shift in rows.items()}, "full")
    longer = benchmark_metrics(cases, {row: [measures(rng, SS=None) for _ in cases] for row in ("full", "ramp_10")}, "full")
    return {"num_controllers": 2, "variants": variants, "longer": {"8": longer}}


def test_the_table_has_every_row_with_its_difference():
    lines = ablation_markdown(example()).splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0].strip("| *") for row in rows if row[0] not in ("| variant", "| controller")] == [
        *("Full controller", "Without trend", "Flat MLP for the equivariant scorer", "Random 30\u00a0%"),
        *("Full controller", "Ramp n/(n+10)"),
    ]
    ahead = float(rows[2][6].split(" ")[0].replace("−", "-"))
    found = example()["variants"]["methods"]["without_trend"]["reference_minus"]["J"]["mean"]
    assert ahead == round(100 * found, 1) > 0
    assert "8 tasks, not trained on such lengths" in "\n".join(lines)


def test_means_over_trainings_know_what_is_missing():
    first, second = dict.fromkeys(MEASURES, 0.2), dict.fromkeys(MEASURES, 0.4) | {"SS": None}
    mean = mean_measures([first, second])
    assert mean["J"] == pytest.approx(0.3)
    assert mean["SS"] is None


def test_the_forest_says_who_is_ahead(tmp_path):
    figure = plot_forest(example())
    save_png(figure, tmp_path / "forest.png")
    assert (tmp_path / "forest.png").read_bytes().startswith(b"\x89PNG")
    score, _, forgetting, safety = figure.axes
    assert [label.get_text() for label in score.get_yticklabels()][:2] == ["Without trend", "Flat MLP for the equivariant scorer"]
    points = [[marks for marks in axes.collections if isinstance(marks, PathCollection)] for axes in (score, forgetting, safety)]
    assert [len(found) for found in points] == [4, 4, 3]  # What some case lacks is not drawn.
    ahead, behind = (to_hex(points[0][index].get_facecolor()[0]) for index in (0, 1))
    assert (ahead, behind) == (ACCENT, WARM)
    assert [marks.get_offsets()[0][0] > 0 for marks in points[1][:2]] == [False, True]  # Less forgetting is drawn to the right.


def test_a_row_may_stand_there_once():
    with pytest.raises(ValidationError, match="lengths must be unique"):
        AblationConfig(lengths=[8, 8])


def run(folder):
    command = [sys.executable, "-m", "jobs.ablate", "--config", str(ROOT / "configs" / "smoke.yaml"), *SMALL]
    places = [f"runs_root={folder / 'runs'}", f"cache_root={folder / 'cache'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    done = subprocess.run([*command, *places], capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "runs" / "smoke"


@pytest.mark.cluster
def test_the_whole_ablation_and_once_more_for_nothing(tmp_path):
    shown, folder = run(tmp_path)
    ablation = json.loads((folder / "ablation" / "ablation.json").read_text())
    rows = ablation["variants"]["methods"]
    assert list(rows) == ["full", *SMOKE_ROWS.strip("[]").split(","), "random_30"]
    assert all(row["mean"]["J"] is not None for row in rows.values())
    assert all(set(row["reference_minus"]) == {"AA", "FGT", "SS", "J"} for name, row in rows.items() if name != "full")
    assert list(ablation["longer"]["3"]["methods"]) == ["full", "ramp_10", "random_30"]
    share = {name: row["mean"]["replay_share"]["mean"] for name, row in rows.items()}
    assert share["mean_share"] == pytest.approx(share["mean_schedule"], abs=0.1)
    policy = {name: row["mean"]["policy_cost"]["mean"] for name, row in rows.items()}
    assert policy["mean_share"] == policy["mean_schedule"] > policy["noisy_40"] == policy["full"] > 0 == policy["random_30"]
    cards = {path.parts[-3].rpartition("-")[0]: json.loads(path.read_text()) for path in folder.glob("ablation/controllers/*/*/controller.json")}
    assert {name: (card["without"], card["decide_every"]) for name, card in cards.items()} == {
        "full": ([], 1),
        "without_normalisation": (["normalisation"], 1),
        "no_safety_reward": ([], 1),
        "cadence_2": ([], 2),
    }
    assert shown.strip() == (folder / "ablation" / "table.md").read_text().strip()
    assert (folder / "ablation" / "forest.png").exists()
    spent = len(Account(folder / "costs.jsonl").spent())
    before = (folder / "ablation" / "ablation.json").read_text()
    run(tmp_path)
    assert (folder / "ablation" / "ablation.json").read_text() == before
    assert len(Account(folder / "costs.jsonl").spent()) == spent
