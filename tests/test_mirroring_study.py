"""jobs.mirroring_study: the null, its settings, its table and plots, and the whole of it on a smoke config."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.check_mirroring import as_json
from jobs.mirroring_study import at_scale, study_cases
from proxymix.account import Account
from proxymix.config import load_config
from proxymix.errors import UserError
from proxymix.mirroring import Pilot, check_mirroring
from proxymix.report.study_plots import plot_study_rho, plot_study_scatter
from proxymix.report.theme import save_png
from proxymix.study_table import study_markdown

ROOT = Path(__file__).resolve().parents[1]
PLACES = np.array([(i, j - i) for i in range(5) for j in range(i + 1, 5)], dtype=float)
TASKS, GAPS = PLACES.T


def config(*overrides):
    return load_config(ROOT / "configs" / "mirroring_study.yaml", list(overrides))


def pilots(rng, of_sequence=1.0, of_place=0.0, num_sequences=4):
    """φ of the sequence's own and of the place alone, the same for proxy and target but for a little noise."""
    place, made = rng.normal(size=len(GAPS)), []
    for sequence in range(num_sequences):
        shared = of_sequence * rng.normal(size=len(GAPS)) + of_place * place
        for seed in range(2):
            proxy, target = (shared + 0.1 * rng.normal(size=len(GAPS)) for _ in range(2))
            made.append(Pilot(f"s{sequence}", seed, proxy, target, GAPS, TASKS))
    return made


def null(found):
    return check_mirroring(found, np.random.default_rng(0), num_resamples=20).null_rho


def test_the_null_is_small_where_sequences_differ_and_high_where_only_places_count():
    rng = np.random.default_rng(0)
    assert abs(null(pilots(rng, num_sequences=8))) < 0.2
    assert null(pilots(rng, of_sequence=0.0, of_place=1.0)) > 0.8


def test_the_null_compares_equal_places_though_sequences_know_different_pairs():
    rng = np.random.default_rng(1)
    whole = pilots(rng, of_sequence=0.0, of_place=1.0, num_sequences=2)
    known = {"s0": slice(0, 8), "s1": slice(2, 10)}
    cut = [Pilot(p.sequence, p.seed, *(values[known[p.sequence]] for values in (p.proxy, p.target, p.gaps, p.tasks))) for p in whole]
    assert null(cut) > 0.7


def test_there_is_no_null_of_one_sequence_nor_without_places():
    rng = np.random.default_rng(2)
    assert null(pilots(rng, num_sequences=1)) is None
    assert null([Pilot(p.sequence, p.seed, p.proxy, p.target, p.gaps) for p in pilots(rng)]) is None


def test_a_scale_is_a_size_and_a_rate_and_nothing_else():
    full = config()
    scaled = at_scale(full, "small", 2.0)
    assert scaled.proxy.model.preset == "small"
    assert scaled.tuning.learning_rate == 2 * full.tuning.learning_rate
    assert scaled.model_copy(update={"tuning": full.tuning, "proxy": full.proxy}) == full


def test_sequences_are_of_worlds_that_no_table_is_made_in():
    worlds = {task.world for case in study_cases(config()) for task in case.tasks}
    assert worlds == {"validation-0", "validation-1"}
    assert study_cases(config()) == study_cases(config())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mirroring_study.pairs=[[nano,nano]]", r"pairs must be of two sizes, got nano twice"),
        ("mirroring_study.pairs=[[nano,huge]]", r"mirroring_study.pairs.0.1"),
        ("mirroring_study.rates=[1,1]", r"rates must be unique"),
        ("mirroring_study.rates=[0]", r"mirroring_study.rates.0"),
    ],
)
def test_a_study_of_nothing_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        config(override)


@pytest.mark.parametrize(("world", "why"), [("heldout-0", "the benchmark's table is made in"), ("base-1", "base models are pre-trained on")])
def test_a_study_looks_at_no_world_of_the_table_or_the_bases(world, why):
    with pytest.raises(UserError, match=f"mirroring_study.worlds: must be none that {why}, got {world}"):
        study_cases(config(f"mirroring_study.worlds=[validation-0,{world}]"))


def example():
    rng, results = np.random.default_rng(3), []
    for proxy, target in (("nano", "micro"), ("micro", "small")):
        for rate in (0.5, 1.0):
            found = pilots(rng)
            result = check_mirroring(found, rng, num_resamples=50)
            results.append({"proxy": proxy, "target": target, "rate": rate, "learning_rate": 0.002 * rate, **as_json(result, found)})
    return {"replay_share": 0.1, "sequences": {f"s{i}": {} for i in range(4)}, "num_seeds": 2, "results": results}


def test_the_table_has_a_row_a_pair_and_rate():
    study = json.loads(json.dumps(example()))
    rows = [line.split(" | ") for line in study_markdown(study).splitlines() if "→" in line]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [
        *(("nano → micro", "0.001 (×0.5)"), ("nano → micro", "0.002 (×1)")),
        *(("micro → small", "0.001 (×0.5)"), ("micro → small", "0.002 (×1)")),
    ]
    assert rows[0][2].startswith(f"**{study['results'][0]['rho']:.2f}**")


def test_one_seed_and_one_sequence_leave_gaps_in_the_table_not_zeros():
    study = example()
    study["results"] = [study["results"][0] | {"ceiling": None, "null_rho": None}]
    assert study_markdown(study).splitlines()[-1].count("–") == 2
    plot_study_rho(study)


def test_both_plots_show_every_result(tmp_path):
    study = example()
    rho, scatter = plot_study_rho(study), plot_study_scatter(study)
    for name, figure in (("rho", rho), ("scatter", scatter)):
        save_png(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(scatter.axes) == 4
    assert len(rho.axes[0].get_yticks()) == 4
    shown = {text.get_text() for text in rho.axes[0].texts}
    assert {f"{result['rho']:.2f}" for result in study["results"]} <= shown


def test_models_that_never_learnt_leave_an_empty_plot():
    nothing = [Pilot("s0", 0, *np.empty((4, 0)))]
    found = as_json(check_mirroring(nothing, np.random.default_rng(0), num_resamples=5), nothing)
    study = example() | {"results": [{"proxy": "nano", "target": "micro", "rate": 1.0, "learning_rate": 0.002, **found}]}
    assert len(plot_study_scatter(study).axes) == len(plot_study_rho(study).axes) == 1


def run(folder):
    small = ["mirroring_study.pairs=[[nano,micro]]", "mirroring_study.rates=[1,2]", "mirroring_study.num_sequences=2", "mirroring_study.num_seeds=1"]
    places = [f"runs_root={folder / 'runs'}", f"cache_root={folder / 'cache'}"]
    command = [sys.executable, "-m", "jobs.mirroring_study", "--config", str(ROOT / "configs" / "smoke.yaml"), *small, *places]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "runs" / "smoke"


@pytest.mark.cluster
def test_the_whole_study_runs_each_pilot_once(tmp_path):
    shown, folder = run(tmp_path)
    study = json.loads((folder / "mirroring_study" / "mirroring_study.json").read_text())
    assert [(result["proxy"], result["target"], result["rate"]) for result in study["results"]] == [("nano", "micro", 1), ("nano", "micro", 2)]
    assert all(-1 <= result["rho"] <= 1 and result["ceiling"] is None for result in study["results"])
    assert shown.strip() == (folder / "mirroring_study" / "table.md").read_text().strip()
    assert all((folder / "mirroring_study" / name).exists() for name in ("rho.png", "scatter.png"))
    pilots = [line.id for line in Account(folder / "costs.jsonl").spent() if line.item == "pilot"]
    assert len(pilots) == len(set(pilots)) == 2 * 2 * 2
    run(tmp_path)
    assert [line.id for line in Account(folder / "costs.jsonl").spent() if line.item == "pilot"] == pilots
