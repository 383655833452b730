"""jobs.benchmark: the worlds kept apart, and the whole of it on a smoke config, twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark import check_settings, choice_cases, table_cases
from proxymix.account import Account
from proxymix.config import load_config
from proxymix.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
METHODS = "[no_replay,random_30,random_chosen,grad_sim_chosen,ramp_chosen,random_realised,schedule_mean,shuffled,untrained]"
SMALL = (
    *(f"benchmark.methods={METHODS}", "benchmark.sequences=[sharp_shift]", "benchmark.num_seeds=2", "benchmark.num_controllers=2"),
    *("benchmark.choice.num_cases=2", "benchmark.choice.shares=[20,60]", "benchmark.choice.constants=[5]", "evaluation.test_size=32"),
)


def config(*overrides):
    return load_config(ROOT / "configs" / "benchmark.yaml", list(overrides))


def worlds(cases):
    return {task.world for case in cases for task in case.tasks}


def test_the_table_is_every_sequence_and_seed():
    cases = table_cases(config())
    assert len(cases) == 48 == len({case.name for case in cases})
    assert worlds(cases) == {"heldout-0"}
    assert len({case.seed for case in cases if case.name.startswith("long/")}) == 8


def test_training_choices_and_table_share_no_world():
    settings = config()
    trained, chosen, judged = set(settings.controller.curriculum.worlds), worlds(choice_cases(settings)), worlds(table_cases(settings))
    assert not trained & chosen
    assert not trained & judged
    assert not chosen & judged


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmark.choice.worlds=[train-0]", r"benchmark.choice.worlds: must share none with controller.curriculum.worlds, got train-0"),
        ("benchmark.world=train-1", r"benchmark.world: must not be trained on, got train-1"),
        ("benchmark.world=validation-0", r"choice.worlds must not hold the table's world, got validation-0"),
        ("benchmark.world=base-0", r"must be none that base models are pre-trained on, got base-0"),
        (
            "controller.curriculum.pool=[cipher@heldout-0,reverse@heldout-0,compare@heldout-0,modular@heldout-0,operation@heldout-0]",
            r"benchmark.world: must not",
        ),
        ("benchmark.sequences=[lonk]", r"sequence.tasks: must be <name>@<world>"),
        ("benchmark.methods=[radnom_30]", r"benchmark.methods.0"),
        ("benchmark.choice.shares=[130]", r"benchmark.choice.shares.0"),
        ("controller.hidden_units=8", r"benchmark.num_controllers: must be 1 for a controller with hidden units"),
    ],
)
def test_what_would_spoil_the_table_is_refused_at_once(override, message):
    with pytest.raises(UserError, match=message):
        check_settings(config(override))


def run(name, folder):
    command = [sys.executable, "-m", "jobs.benchmark", "--config", str(ROOT / "configs" / "smoke.yaml"), f"name={name}", *SMALL]
    places = [f"runs_root={folder / 'runs'}", f"cache_root={folder / 'cache'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    done = subprocess.run([*command, *places], capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "runs" / name


@pytest.mark.cluster
def test_the_whole_table_and_once_more_from_the_cache(tmp_path):
    shown, folder = run("first", tmp_path)
    metrics = json.loads((folder / "benchmark" / "metrics.json").read_text())
    rows = metrics["methods"]
    assert metrics["cases"] == ["sharp_shift/seed0", "sharp_shift/seed1"]
    assert set(rows) == {"proxymix", "proxymix_seed0", "proxymix_seed1", *METHODS.strip("[]").split(",")}
    assert all(row["mean"]["J"] is not None for row in rows.values())
    assert rows["random_realised"]["mean"]["replay_share"]["mean"] == pytest.approx(rows["proxymix"]["mean"]["replay_share"]["mean"], abs=0.02)
    assert rows["no_replay"]["mean"]["replay_share"]["mean"] == 0
    policy = {method: row["mean"]["policy_cost"]["mean"] for method, row in rows.items()}
    assert policy["proxymix"] == pytest.approx(policy["proxymix_seed0"] + policy["proxymix_seed1"])
    assert policy["schedule_mean"] > policy["random_realised"] == policy["proxymix"] > policy["random_chosen"] > 0 == policy["random_30"]
    assert json.loads((folder / "benchmark" / "choices.json").read_text())["numbers"]["random_chosen"] in (20, 60)
    assert shown.strip() == (folder / "benchmark" / "table.md").read_text().strip()
    _, again = run("second", tmp_path)
    assert (again / "benchmark" / "metrics.json").read_text() == (folder / "benchmark" / "metrics.json").read_text()
    assert {line.item for line in Account(again / "costs.jsonl").spent()} == {"episodes"}  # Controllers are learnt anew, nothing else.
