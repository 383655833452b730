"""jobs.benchmark on sources of one's own, and with a controller that is given: what is kept apart, what is refused, and a small table of each."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from jobs.benchmark import run_benchmark
from jobs.benchmark_rows import chosen_rows, steered_rows
from jobs.run import Run
from proxymix.account import Account, Cost
from proxymix.benchmark_cases import choice_cases, practised_sequences, sequence_cases, sequence_mark, table_cases, table_methods
from proxymix.benchmark_checks import check_settings
from proxymix.benchmark_config import METHODS
from proxymix.config import load_config, validated
from proxymix.controllers.frozen import save_controller
from proxymix.controllers.policy import initial_parameters
from proxymix.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / "configs" / "benchmark_real.yaml"
WORDS = ("red", "green", "blue", "brown")
SOURCES = ("safety", "skill", "first", "second", "third", "fourth")


def source(stem, **changes):
    return {"format": "jsonl", "path": f"{stem}.jsonl"} | changes


def tree(folder, **changes):
    """Two orders of two sources, two others to practise and to choose on; nothing is trained for long."""
    pool = [source("third"), source("fourth")]
    benchmark = {
        "sequences": {"forward": [source("first"), source("second")], "backward": [source("second"), source("first")]},
        "choice": {"pool": pool, "num_cases": 2, "shares": [20, 60], "constants": [5]},
        "num_seeds": 1,
        "num_controllers": 2,
        "methods": ["no_replay", "random_30", "random_chosen", "ramp_chosen"],
        "same_sequences": [],
        "oracle_sequences": [],
        "headroom_cases": 0,
    }
    return {
        "name": "own",
        "data_root": str(folder),
        "runs_root": str(folder / "runs"),
        "cache_root": str(folder / "cache"),
        "sequence": {"tasks": benchmark["sequences"]["forward"], "anchors": [source("safety"), source("skill")]},
        "pretraining": {"tokenizer": "bpe", "vocabulary_size": 300, "num_steps": 5},
        "target": {"model": {"preset": "nano"}},
        "tuning": {"stages_per_task": 2, "steps_per_stage": 2, "batch_size": 4, "validation_size": 4, "buffer_size": 8, "anchor_buffer_size": 8},
        "controller": {"episodes": 4, "episodes_per_iteration": 4, "curriculum": {"num_tasks": 2, "num_cases": 1, "pool": pool}},
        "evaluation": {"test_size": 8},
        "benchmark": benchmark | changes,
    }


@pytest.fixture
def data(tmp_path):
    for index, name in enumerate(SOURCES):
        rows = [{"prompt": f"{name} {number}:", "response": WORDS[(number + index) % 4]} for number in range(60)]
        harmful = [{"harmful": number % 2 == 0} if name == "safety" else {} for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row | flag) + "\n" for row, flag in zip(rows, harmful, strict=True)))
    return tmp_path


@pytest.fixture
def given(tmp_path):
    """Folders of frozen controllers, by what their cards say they were trained on."""

    def save(*sources, architecture="equivariant"):
        folder, parameters = tmp_path / "given", initial_parameters(architecture, 8, 3, np.random.default_rng(0))
        facts = {"training": {"sources": list(sources)}, "training_flops": 12_000, "training_cost": {"episodes": 8}}
        save_controller(folder, parameters, name="proxymix", architecture=architecture, facts=facts)
        return {"path": str(folder)}

    return save


def with_controller(folder, controller, **changes):
    made = tree(folder, **changes)
    return made | {"controller": made["controller"] | controller}


def labels(cases):
    return [[task.label for task in case.tasks] for case in cases]


def test_orders_of_ones_own_are_cases_at_every_seed(data):
    config = validated(tree(data, num_seeds=2), "test")
    check_settings(config)
    assert [case.name for case in table_cases(config)] == ["forward/seed0", "forward/seed1", "backward/seed0", "backward/seed1"]
    assert labels(table_cases(config)) == [["first", "second"]] * 2 + [["second", "first"]] * 2
    assert all(set(order) == {"third", "fourth"} for order in labels(choice_cases(config)))
    assert not {case.seed for case in table_cases(config)} & {case.seed for case in sequence_cases(config, "forward", 3, "mark")}


def test_another_order_of_the_same_name_is_another_sequence(data):
    made = tree(data)
    first = validated(made, "test")
    made["benchmark"]["sequences"]["forward"].reverse()
    assert sequence_mark(first, "forward") != sequence_mark(validated(made, "test"), "forward")
    assert sequence_mark(first, "backward") == sequence_mark(validated(made, "test"), "backward")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sequences": {"one": [source("first"), source("third")]}},
            r"benchmark.sequences: must not be trained on, got third, .* controller.curriculum",
        ),
        ({"choice": {"pool": [source("third"), source("first")]}}, r"benchmark.choice: must hold nothing of the table's, got first in both"),
        ({"choice": {"pool": [source("third"), source("again")]}}, r"benchmark.choice.pool: must share no rows with .* of 'again' in 'second'"),
        ({"choice": {"pool": None}}, r"benchmark.choice.pool: must be given where benchmark.sequences are of your own"),
        ({"sequences": ["long"]}, r"benchmark.choice.pool: must be null where benchmark.sequences are builtin"),
        ({"sequences": {"one": [source("first"), "cipher@base-1"]}}, r"no world that base models are pre-trained on, got base-1"),
        ({"sequences": {"one": [source("first"), source("lost")]}}, r"lost.jsonl"),
        ({"sequences": {"one": [source("first"), source("second", name="skill")]}}, r"benchmark.sequences.one must have unique names"),
        ({"sequences": {"one/two": [source("first"), source("second")]}}, r"benchmark.sequences"),
        ({"sequences": {"one": [source("first")]}}, r"benchmark.sequences"),
        ({"same_sequences": ["sideways"]}, r"must be among sequences, got sideways"),
    ],
)
def test_what_would_spoil_a_table_of_ones_own_is_refused_at_once(data, changes, message):
    (data / "again.jsonl").write_text((data / "second.jsonl").read_text())
    with pytest.raises(UserError, match=message):
        check_settings(validated(tree(data, **changes), "test"))


def test_own_orders_need_something_of_their_own_to_practise_on(data, given):
    made = with_controller(data, {"curriculum": {"num_tasks": 2}})
    made["sequence"]["tasks"] = "long@heldout-0"  # Or the config itself would ask for it.
    with pytest.raises(UserError, match=r"controller.curriculum.pool: must be given where benchmark.sequences"):
        check_settings(validated(made, "test"))
    made["controller"] |= given("cipher@train-0")
    check_settings(validated(made, "test"))


def test_the_pool_for_choices_holds_as_many_as_the_controller_practises_on(data, given):
    with pytest.raises(UserError, match=r"benchmark.choice.pool: must hold the 3 sources of controller.curriculum.num_tasks, got 2"):
        check_settings(
            validated(
                with_controller(data, given("cipher@train-0") | {"curriculum": {"num_tasks": 3}}) | {"sequence": {"tasks": "long@heldout-0"}}, "test"
            )
        )


def test_a_given_controller_is_the_row_and_its_card_says_what_it_cost(data, given):
    config = validated(with_controller(data, given("cipher@train-0"), methods=["no_replay", "shuffled"]), "test")
    check_settings(config)
    run = Run.open(config, "benchmark")
    run.begin()
    rows = steered_rows(run, "")
    assert rows.keys() == {"proxymix", "shuffled"}
    assert {ready.policy_flops for row in rows.values() for ready in row.values()} == {12_000}
    assert {ready.controller for row in rows.values() for ready in row.values()} == {str(run.folder / "controller")}
    assert [(line.item, line.episodes, line.cached) for line in run.account.lines()] == [("episodes", 8, True)]


def run_nothing(config, role, base, runs, update, done):
    """A table's runs without a model: some scores, and as many operations as the method's name has letters."""
    results = []
    for index, asked in enumerate(runs):
        tasks, anchors = [task.label for task in asked.case.tasks], ["safety", "skill"]
        report = {"tasks": tasks, "anchors": anchors, "matrix": [[0.5, 0.5]] * 2, "anchor_accuracy": {name: [0.5] for name in anchors}, "safety": []}
        result = {"report": report, "validation": {}, "shares": [[0.5]], "replay_share": 0.5, "cost": asdict(Cost(len(asked.method)))}
        result["validation"] = dict.fromkeys(tasks, float(index))
        done(index, f"{index:08}", result, False)
        results.append(result)
    return results


def test_every_cost_in_the_table_is_the_accounts(data, given, monkeypatch):
    monkeypatch.setattr("jobs.accounted_runs.run_table", run_nothing)
    config = validated(with_controller(data, given("cipher@train-0"), methods=["no_replay", "random_30", "random_chosen"]), "test")

    def costs():
        run = Run.open(config, "benchmark")
        run.begin()
        steered = steered_rows(run, "")
        rows = run_benchmark(run, config, "base", steered | chosen_rows(run, "base", steered), run.folder)["methods"]
        return {name: tuple(row["mean"][f"{kind}_cost"]["mean"] for kind in ("policy", "total")) for name, row in rows.items()}, run.account.path

    before, path = costs()
    unit, chosen = len("random_30"), 2 * len("random_20random_60") / len("random_30")
    assert before == {
        "proxymix": (12_000 / unit, pytest.approx(12_000 / unit + len("proxymix") / unit)),
        "no_replay": (0.0, 1.0),
        "random_30": (0.0, 1.0),
        "random_chosen": (chosen, pytest.approx(chosen + len("random_chosen") / unit)),
    }
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:  # Learning, two runs on the proxy, all rows but the unit's: as if each had taken more.
        line["flops"] *= 2 if line["id"].startswith("given/") else 3 if line["model"] == "proxy" else 5 if "random_30" not in line["id"] else 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    after, _ = costs()
    policy = {"proxymix": 2, "no_replay": 0, "random_30": 0, "random_chosen": 3}
    assert after == {
        name: (
            pytest.approx(policy[name] * had),
            pytest.approx(policy[name] * had + (1 if name == "random_30" else 5) * (total - had)),
        )
        for name, (had, total) in before.items()
    }


def test_rows_that_get_a_trainings_budget_stand_beside_no_given_controller(data, given):
    unsaid = {"methods": None, "same_sequences": None, "oracle_sequences": None}
    config = validated(with_controller(data, given("cipher@train-0"), **unsaid), "test")
    check_settings(config)
    assert set(METHODS) - set(table_methods(config)) == {"schedule_tuned", "random_policy"}
    assert not any(practised_sequences(config).values())
    learning = validated(tree(data, **unsaid), "test")
    assert table_methods(learning) == list(METHODS)
    assert practised_sequences(learning) == {"proxymix_same": ["forward", "backward"], "oracle": ["forward", "backward"]}


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"methods": ["no_replay", "random_policy"]}, "random_policy"),
        ({"same_sequences": ["forward"]}, "proxymix_same"),
        ({"oracle_sequences": ["forward"]}, "oracle"),
    ],
)
def test_asked_for_they_are_refused(data, given, changes, row):
    with pytest.raises(UserError, match=f"benchmark: {row} would be learnt with a controller's training budget"):
        check_settings(validated(with_controller(data, given("cipher@train-0"), **changes), "test"))


@pytest.mark.parametrize("seen", ["first", "cipher@base-0"])
def test_a_given_controller_must_not_know_the_table(data, given, seen):
    check_settings(validated(with_controller(data, given("third", "cipher@train-0")), "test"))
    own = {"one": [source("first"), "cipher@base-0"]} if "@" in seen else tree(data)["benchmark"]["sequences"]
    with pytest.raises(UserError, match=r"benchmark.sequences: must not be trained on, got .*, which is in the card of controller.path"):
        check_settings(validated(with_controller(data, given(seen), sequences=own), "test"))


def test_a_builtin_table_asks_the_card_too(given):
    overrides = [f"controller.path={given('cipher@heldout-0')['path']}"]
    with pytest.raises(UserError, match=r"benchmark.world: must not be trained on, got heldout-0, which is in the card of controller.path"):
        check_settings(load_config(ROOT / "configs" / "benchmark.yaml", overrides))


def test_the_real_tables_config_keeps_its_tasks_apart():
    config = load_config(REAL)
    pool = {spec.label for spec in config.controller.curriculum.pool}
    judged = {label for order in labels(table_cases(config)) for label in order}
    assert len(config.benchmark.orders) * config.benchmark.num_seeds == len(table_cases(config)) == 6
    assert pool == {spec.label for spec in config.benchmark.choice.pool}
    assert not judged & (pool | {anchor.label for anchor in config.sequence.anchors})


def run(made, name):
    folder = Path(made["data_root"])
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(made | {"name": name}, sort_keys=False))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-m", "jobs.benchmark", "--config", str(folder / f"{name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "runs" / name / "benchmark" / "metrics.json").read_text()), folder / "runs" / name


@pytest.mark.cluster
def test_a_table_of_ones_own_and_once_more_with_the_controller_given(data):
    learnt, folder = run(tree(data), "learnt")
    assert learnt["cases"] == ["forward/seed0", "backward/seed0"]
    assert set(learnt["methods"]) == {"proxymix", "proxymix_seed0", "proxymix_seed1", "no_replay", "random_30", "random_chosen", "ramp_chosen"}
    assert all(row["num_cases"] == 2 and row["mean"]["SS"] is not None for row in learnt["methods"].values())
    assert all((folder / "benchmark" / name).stat().st_size > 1000 for name in ("differences.png", "trade_off.png"))
    taken, second = run(with_controller(data, {"path": str(folder / "controllers" / "mean")}), "given")
    assert taken["methods"] == {name: row for name, row in learnt["methods"].items() if not name.startswith("proxymix_seed")}
    assert not Account(second / "costs.jsonl").spent()  # The same controller in the same rows: nothing is run again.
