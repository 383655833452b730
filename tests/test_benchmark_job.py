"""jobs.benchmark: the worlds kept apart, and the whole of it on a smoke config, twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.benchmark import QUICK
from proxymix.account import Account
from proxymix.benchmark_cases import choice_cases, headroom_cases, sequence_cases, table_cases, training_cases
from proxymix.benchmark_checks import check_settings
from proxymix.config import load_config
from proxymix.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
METHODS = (
    "[no_replay,random_30,random_chosen,grad_sim_chosen,ramp_chosen,random_realised,inscl_realised,schedule_mean,shuffled,untrained,"
    "schedule_tuned,random_policy,doremi,olora]"
)
SMALL = (
    *(f"benchmark.methods={METHODS}", "benchmark.sequences=[sharp_shift]", "benchmark.num_seeds=2", "benchmark.num_controllers=2"),
    *("benchmark.choice.num_cases=2", "benchmark.choice.shares=[20,60]", "benchmark.choice.constants=[5]", "evaluation.test_size=32"),
    *("target.model.implementation=lean", "benchmark.oracle_episodes=4"),
    *("benchmark.headroom_cases=1", "benchmark.headroom_evaluations=8"),
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


def test_what_practises_on_a_table_sequence_meets_none_of_its_data_streams():
    settings = config()
    streams = {(case.tasks, case.seed) for case in table_cases(settings)}
    for sequence in settings.benchmark.sequences:
        practice = sequence_cases(settings, sequence, 20, "mark")
        assert len({case.seed for case in practice}) == 20
        assert {case.tasks for case in practice} == {case.tasks for case in table_cases(settings) if case.name.startswith(f"{sequence}/")}
        assert not streams & {(case.tasks, case.seed) for case in practice}


def test_searches_share_no_world_with_the_table():
    settings = config()
    for seed in range(settings.benchmark.num_controllers):
        assert worlds(training_cases(settings, seed)) <= set(settings.controller.curriculum.worlds)
        assert not worlds(training_cases(settings, seed)) & worlds([*table_cases(settings), *choice_cases(settings)])


def test_headroom_is_measured_on_different_sequences_first():
    assert [case.name for case in headroom_cases(config("benchmark.headroom_cases=7"))][4:] == [
        "related/seed0",
        "very_long/seed0",
        "sharp_shift/seed1",
    ]


def test_the_quick_form_is_a_config_that_works():
    settings = config(*QUICK)
    check_settings(settings)
    assert (settings.benchmark.sequences, settings.benchmark.num_seeds) == (["long"], 2)
    assert settings.name != config().name  # A quick run must not stand where the whole one goes on.


def test_only_a_job_with_a_quick_form_has_the_option():
    done = subprocess.run(
        [sys.executable, "-m", "jobs.report", "--config", "no.yaml", "--quick"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert "no quick form" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("benchmark.choice.worlds=[train-0]", r"benchmark.choice.worlds: must share none with controller.curriculum.worlds, got train-0"),
        ("benchmark.world=train-1", r"benchmark.world: must not be trained on, got train-1"),
        ("benchmark.world=validation-0", r"choice.worlds must not hold the table's world, got validation-0"),
        ("benchmark.world=base-0", r"must be none that base models are pre-trained on, got base-0"),
        (
            "controller.curriculum.num_tasks=3 controller.curriculum.pool=[cipher@heldout-0,reverse@heldout-0,compare@heldout-0]",
            r"benchmark.world: must not",
        ),
        ("benchmark.sequences=[lonk]", r"sequence.tasks: must be <name>@<world>"),
        ("benchmark.methods=[radnom_30]", r"benchmark.methods.0"),
        ("benchmark.choice.shares=[130]", r"benchmark.choice.shares.0"),
        ("benchmark.same_sequences=[lonk]", r"same_sequences and oracle_sequences must be among sequences, got lonk"),
        ("benchmark.oracle_episodes=40", r"benchmark.oracle_episodes: must be a multiple of controller.episodes_per_iteration, got 40"),
        ("benchmark.headroom_evaluations=8", r"benchmark.headroom_evaluations: must be at least controller.episodes_per_iteration, got 8"),
        ("target.precision=bf16", r"set benchmark.oracle_sequences to \[\] and benchmark.headroom_cases to 0"),
        ("controller.curriculum.num_tasks=5 controller.max_sources=8", r"controller.max_sources: .* must hold its 10 sources, got 8"),
        ("controller.hidden_units=8", r"benchmark.num_controllers: must be 1 for a controller with hidden units"),
    ],
)
def test_what_would_spoil_the_table_is_refused_at_once(overrides, message):
    with pytest.raises(UserError, match=message):
        check_settings(config(*overrides.split()))


def run(name, folder, *overrides):
    command = [sys.executable, "-m", "jobs.benchmark", "--config", str(ROOT / "configs" / "smoke.yaml"), f"name={name}", *SMALL, *overrides]
    places = [f"runs_root={folder / 'runs'}", f"cache_root={folder / 'cache'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    done = subprocess.run([*command, *places], capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder / "runs" / name


@pytest.mark.cluster
def test_the_whole_table_and_once_more_from_the_cache(tmp_path):
    shown, folder = run("first", tmp_path, "benchmark.more_targets=[micro]")
    metrics = json.loads((folder / "benchmark" / "metrics.json").read_text())
    rows = metrics["methods"]
    assert metrics["cases"] == ["sharp_shift/seed0", "sharp_shift/seed1"]
    sometimes = {"proxymix_same": 2, "oracle": 2, "headroom": 1}
    assert set(rows) == {"proxymix", "proxymix_seed0", "proxymix_seed1", *METHODS.strip("[]").split(","), *sometimes}
    assert {method: row["num_cases"] for method, row in rows.items()} == dict.fromkeys(rows, 2) | sometimes
    assert all(row["mean"]["J"] is not None for row in rows.values())
    assert rows["random_realised"]["mean"]["replay_share"]["mean"] == pytest.approx(rows["proxymix"]["mean"]["replay_share"]["mean"], abs=0.02)
    assert rows["no_replay"]["mean"]["replay_share"]["mean"] == 0
    policy = {method: row["mean"]["policy_cost"]["mean"] for method, row in rows.items()}
    assert policy["proxymix"] == pytest.approx(policy["proxymix_seed0"] + policy["proxymix_seed1"])
    assert policy["schedule_mean"] > policy["random_realised"] == policy["proxymix"] > policy["random_chosen"] > 0 == policy["random_30"]
    assert json.loads((folder / "benchmark" / "choices.json").read_text())["numbers"]["random_chosen"] in (20, 60)
    assert rows["olora"]["mean"]["replay_share"]["mean"] == 0
    assert policy["inscl_realised"] == policy["proxymix"]
    assert policy["olora"] == 0 < min(policy[name] for name in ("schedule_tuned", "random_policy", "doremi", *sometimes))
    small = json.loads((folder / "benchmark" / "micro" / "metrics.json").read_text())["methods"]
    assert small.keys() == rows.keys() - {"oracle", "headroom"}  # Another size from the same controllers.
    assert small["proxymix"]["mean"]["total_cost"] != rows["proxymix"]["mean"]["total_cost"]
    assert all((folder / "benchmark" / name).stat().st_size > 1000 for name in ("differences.png", "trade_off.png", "micro/table.md"))
    assert shown.strip() == (folder / "benchmark" / "table.md").read_text().strip()
    _, again = run("second", tmp_path)
    assert (again / "benchmark" / "metrics.json").read_text() == (folder / "benchmark" / "metrics.json").read_text()
    assert {line.item for line in Account(again / "costs.jsonl").spent()} == {"episodes"}  # Controllers are learnt anew, nothing else.
