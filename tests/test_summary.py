"""metrics.json is what the accuracy matrices, the realised counts and the tokens say, and nothing else."""

import io
import json
import shutil

import pytest
from fake_run import BATCH, STEPS, build_fake_run
from rich.console import Console

from proxymix.account import Account, Cost
from proxymix.artifacts import read_json, read_jsonl, write_json, write_jsonl
from proxymix.config import validated
from proxymix.errors import UserError
from proxymix.metrics import assert_identity
from proxymix.summary import scores, summarise
from proxymix.table import COLUMNS, best_methods, cell, fallback_mark, metrics_table, over_seeds

REPORT = {
    "tasks": ["a", "b"],
    "anchors": ["general"],
    "matrix": [[0.9, None], [0.6, 0.8]],
    "anchor_accuracy": {"general": [0.9, 0.7]},
    "safety": [None, {"refusal_accuracy": 0.8, "benign_compliance": 0.9, "balanced": 0.85, "selectivity": 0.7}],
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "fake"
    return build_fake_run(folder, seeds=(0, 1), methods=["proxymix", "no_replay", "random_30"]), folder


def test_scores_by_hand():
    values = scores(REPORT)
    assert {k: values[k] for k in ("AA", "FGT", "NTA", "BWT")} == {"AA": 0.7, "FGT": 0.3, "NTA": 0.85, "BWT": -0.3}
    assert (values["RA"], values["BC"], values["balanced"], values["SS"], values["anchor:general"]) == (0.8, 0.9, 0.85, 0.7, 0.7)


def test_an_unscored_cell_is_unknown_not_zero():
    values = scores(REPORT | {"matrix": [[0.9, None], [None, 0.8]], "safety": [None, None]})
    assert [values[k] for k in ("AA", "FGT", "NTA", "BWT", "RA", "SS")] == [None] * 6
    assert values["anchor:general"] == 0.7


def test_mean_error_and_identity_over_seeds(run):
    config, folder = run
    metrics = summarise(config, folder)
    for row in metrics["methods"].values():
        first, second = row["AA"]["per_seed"]
        assert row["AA"]["mean"] == pytest.approx((first + second) / 2)
        assert row["AA"]["se"] == pytest.approx(abs(first - second) / 2)
        assert_identity({key: row[key]["mean"] for key in ("AA", "NTA", "BWT")}, len(metrics["tasks"]))


def policy_and_own(config, folder, method="proxymix"):
    row = summarise(config, folder)["methods"][method]
    return row["policy_cost"]["per_seed"][0], row["total_cost"]["per_seed"][0]


def test_cost_in_random_replay_runs(run):
    config, folder = run
    tokens = [sum(r["num_tokens"] for r in read_jsonl(folder / f"target/{m}/seed0/decisions.jsonl")) for m in ("proxymix", "random_30")]
    policy = (4 * 2e9 + 3e9 + 20 * 1e9) / (6 * 110_208 * tokens[1])  # pilots, reference runs, episodes; base models are given
    assert policy_and_own(config, folder) == pytest.approx((policy, policy + tokens[0] / tokens[1]))
    assert policy_and_own(config, folder, "random_30") == (0.0, 1.0)
    assert policy_and_own(config, folder, "no_replay")[0] == 0


def test_work_done_again_or_found_in_a_cache_changes_no_table(run):
    config, folder = run
    before, account = json.dumps(summarise(config, folder)), folder / "costs.jsonl"
    lines = list(read_jsonl(account))
    again = [line | {"cpu_seconds": 9.9} for line in lines if not line["cached"]]
    write_jsonl(account, [line | {"cached": True, "gpu_seconds": 1.0} for line in lines] + again)
    assert json.dumps(summarise(config, folder)) == before


@pytest.mark.parametrize(
    ("lost", "methods"),
    [
        (lambda line: line["item"] == "pilot", ["proxymix"]),
        (lambda line: line["id"] == "iteration7", ["proxymix"]),
        (lambda line: line["id"] == "proxymix/seed0/task1/stage2", ["proxymix"]),
        (lambda line: line["item"] == "tuning", ["proxymix", "no_replay", "random_30"]),
    ],
)
def test_costs_are_unknown_without_their_lines(run, lost, methods):
    config, folder = run
    write_jsonl(folder / "costs.jsonl", [line for line in read_jsonl(folder / "costs.jsonl") if not lost(line)])
    unknown = [method for method in config.methods if policy_and_own(config, folder, method)[1] is None]
    assert unknown == methods


def test_a_controller_that_was_not_transferred_has_cost_its_pilots(run):
    config, folder = run
    write_json(folder / "mirroring.json", {"passed": False})
    write_jsonl(folder / "costs.jsonl", [line for line in read_jsonl(folder / "costs.jsonl") if line["item"] in ("pilot", "tuning")])
    unit = sum(6 * 110_208 * row["num_tokens"] for row in read_jsonl(folder / "target/random_30/seed0/decisions.jsonl"))
    assert policy_and_own(config, folder)[0] == pytest.approx(8e9 / unit)


def test_a_sweep_is_in_the_account_of_the_run_whose_settings_it_found(run):
    config, folder = run
    account, before = Account(folder / "costs.jsonl"), policy_and_own(config, folder)[0]
    account.add("sweep_trial", "0123456789abcdef/rung1", "proxy", Cost(10**9), episodes=4)
    account.add("reference", "validation0/01234567", "proxy", Cost(10**9), episodes=2)
    assert policy_and_own(config, folder)[0] == before  # Its own sweep found settings for another.
    unit = sum(6 * 110_208 * row["num_tokens"] for row in read_jsonl(folder / "target/random_30/seed0/decisions.jsonl"))
    account.add("sweep_trial", "given/0123456789ab", "proxy", Cost(10**9), cached=True, episodes=4)
    assert policy_and_own(config, folder)[0] == pytest.approx(before + 1e9 / unit)


def test_fallback_share_is_counted_and_marks_the_row(run):
    config, folder = run
    metrics = summarise(config, folder)
    assert metrics["methods"]["proxymix"]["fallback_share"]["per_seed"] == [0.0, 1 / 20]
    assert metrics["methods"]["random_30"]["fallback_share"]["mean"] == 0
    assert _printed(metrics).count("→ fallback 2.5\u00a0%") == 1
    for seed in config.seeds:
        path = folder / f"target/proxymix/seed{seed}/decisions.jsonl"
        write_jsonl(path, [row | {"fallback": "the gate is closed"} for row in read_jsonl(path)])
    assert fallback_mark(summarise(config, folder)["methods"]["proxymix"]) == "→ fallback 100\u00a0%"


def test_replay_share_is_the_realised_one(run):
    config, folder = run
    rows = list(read_jsonl(folder / "target/random_30/seed0/decisions.jsonl"))
    replayed = sum(n for row in rows for s in row["sources"] for n in [row["counts"][s["name"]]] if s["role"] != "current")
    share = summarise(config, folder)["methods"]["random_30"]["replay_share"]["per_seed"][0]
    assert share == pytest.approx(replayed / (len(rows) * STEPS * BATCH))


def test_a_missing_seed_stays_out_of_the_mean(run):
    config, folder = run
    (folder / "target/proxymix/seed0/accuracy.json").unlink()
    entry = summarise(config, folder)["methods"]["proxymix"]["AA"]
    assert entry["per_seed"][0] is None
    assert (entry["mean"], entry["se"]) == (entry["per_seed"][1], None)


def test_what_is_not_tuned_or_scored_yet_is_none(run):
    config, folder = run
    full = summarise(config, folder)
    for seed in config.seeds:
        shutil.rmtree(folder / f"target/no_replay/seed{seed}")
    path = folder / "target/random_30/seed0/accuracy.json"
    none = [[None] * 5] * 5
    write_json(path, read_json(path) | {"matrix": none, "anchor_accuracy": {"safety": none[0], "general": none[0]}, "safety": none[0]})
    metrics = summarise(config, folder)
    methods = metrics["methods"]
    assert list(methods) == config.methods
    assert {method: list(row) for method, row in methods.items()} == {method: list(row) for method, row in full["methods"].items()}
    assert all(entry == {"mean": None, "se": None, "per_seed": [None, None]} for entry in methods["no_replay"].values())
    assert methods["random_30"]["SS"]["per_seed"] == [None, full["methods"]["random_30"]["SS"]["per_seed"][1]]
    assert methods["random_30"]["anchor:general"]["per_seed"][0] is None
    assert "No replay" in _printed(metrics)


def test_no_clock_goes_in(run):
    config, folder = run
    before = summarise(config, folder)
    path = folder / "target/proxymix/seed0/decisions.jsonl"
    write_jsonl(path, [row | {"seconds": {"train": 99.0}} for row in read_jsonl(path)])
    assert json.dumps(summarise(config, folder)) == json.dumps(before)
    write_json(folder / "again.json", before)  # holds no NaN


def test_nothing_scored_is_a_users_error(tmp_path):
    config = validated({"name": "empty", "sequence": {"tasks": "style@heldout-0"}}, "test")
    with pytest.raises(UserError, match=r"accuracy\.json"):
        summarise(config, tmp_path)


def test_best_of_a_column_shares_ties_and_is_silent_without_contrast():
    metrics = {"methods": {name: {"FGT": {"mean": value, "se": None}} for name, value in (("a", 0.1001), ("b", 0.1), ("c", 0.2), ("d", None))}}
    assert best_methods(COLUMNS[1], metrics) == {"a", "b"}
    assert best_methods(COLUMNS[1], {"methods": {"a": {"FGT": {"mean": 0.1}}}}) == set()
    assert best_methods(COLUMNS[-1], {"methods": {"a": {"total_cost": {"mean": 1}}, "b": {"total_cost": {"mean": 2}}}}) == set()


@pytest.mark.parametrize(
    ("column", "entry", "expected"),
    [
        (COLUMNS[0], {"mean": 0.6123, "se": 0.008}, ("61.2", "±0.8")),
        (COLUMNS[3], {"mean": -0.051, "se": None}, ("−5.1", "")),
        (COLUMNS[-1], {"mean": 2.4, "se": 0.001}, ("2.40", "")),
        (COLUMNS[0], {"mean": None, "se": None}, ("–", "")),
        (COLUMNS[0], None, ("–", "")),
    ],
)
def test_cells(column, entry, expected):
    assert cell(column, entry) == expected


def _printed(metrics):
    console = Console(width=80, record=True, color_system="truecolor", file=io.StringIO())
    console.print(metrics_table(metrics))
    return console.export_text(styles=True)


def test_seeds_that_count():
    def metrics(*per_seed):
        return {"seeds": list(range(len(per_seed))), "methods": {"proxymix": {"AA": {"per_seed": per_seed}}}}

    assert over_seeds(metrics(0.5, 0.6)) == "mean ± standard error over 2 seeds"
    assert over_seeds(metrics(0.5, 0.6, None)) == "mean ± standard error over 2 of 3 seeds"
    assert over_seeds(metrics(0.5, None)) == "from 1 of 2 seeds"
    assert over_seeds(metrics(0.5)) == "from 1 seed"


def test_terminal_table_fits_eighty_columns_and_marks_the_best(run):
    metrics = summarise(*run)
    text = _printed(metrics)
    assert "…" not in text
    best = max(row["NTA"]["mean"] for row in metrics["methods"].values())
    assert f"\x1b[1;32m{100 * best:.1f}" in text
