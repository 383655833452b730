"""A sweep on stand-in trials whose driver is killed, and the same sweep again: what comes out, and what is not run twice."""

import pytest
from fake_sweep import LEARNING_RATE, SIGMA, judge_sigma, killed_session, learnt_plan, plan, ray_of_trials, timeless
from test_sweep_search import proposals

from cluster.sweep import account_for, run_sweep
from cluster.sweep_trial import LINEAGE
from proxymix.account import Account
from proxymix.artifacts import read_json, read_jsonl
from proxymix.sweep_result import best_config, best_trial

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    with ray_of_trials():
        yield


@pytest.mark.parametrize(("search", "at_once", "then"), [("random", 2, {"max_concurrent": 1, "num_env_runners": 1}), ("optuna", 1, {})])
def test_killed_and_restored_is_the_undisturbed_sweep(cluster, tmp_path, search, at_once, then):
    """Same trials, scores and best.yaml, also with other workers. TPE's proposals depend on who was done when, so it takes its trials in turn."""
    settings = {"search": search, "max_concurrent": at_once, "num_trials": 3, "startup_trials": 1}
    undisturbed = run_sweep(learnt_plan(tmp_path / "undisturbed", **settings))
    known = killed_session(tmp_path / "killed", settings)
    assert 0 < sum(map(len, known.values())) < 12
    sweep = learnt_plan(tmp_path / "killed", **settings | then)
    restored = run_sweep(sweep)
    assert timeless(restored) == timeless(undisturbed)
    assert best_config(sweep.config, best_trial(restored)) == best_config(sweep.config, best_trial(undisturbed))
    assert all(list(read_jsonl(path))[: len(rungs)] == rungs for path, rungs in known.items())  # With their seconds: not run again.
    assert len([path for path in (tmp_path / "killed/tune").iterdir() if path.is_dir()]) == 3  # The killed session's trials went on.


def test_a_killed_population_goes_on_and_runs_no_rung_twice(cluster, tmp_path):
    settings = {"scheduler": "pbt", "search": None, "num_trials": 3, "space": {LEARNING_RATE: {"log_uniform": [1e-3, 0.1]}}}
    known = killed_session(tmp_path, settings)
    assert 0 < sum(map(len, known.values())) < 12
    trials = run_sweep(learnt_plan(tmp_path, **settings))
    assert [(trial["status"], len(trial["rungs"])) for trial in trials] == [("finished", 4)] * 3
    assert all(list(read_jsonl(path))[: len(rungs)] == rungs for path, rungs in known.items())
    lineages = {path.parent.name: read_json(path)["parent"] for path in tmp_path.glob(f"trainings/*/{LINEAGE}")}
    assert {parent["training"] for parent in lineages.values() if parent} <= lineages.keys()
    assert len([parent for parent in lineages.values() if parent is None]) == 3  # Who began at random: no member was begun anew.
    account = Account(tmp_path / "costs.jsonl")
    assert account_for(account, tmp_path)["episodes"] == 4 * len(account.lines())


def test_tune_tells_tpe_the_validation_scores(cluster, tmp_path):
    settings = {"search": "optuna", "num_trials": 5, "startup_trials": 2, "max_concurrent": 1}
    trials = run_sweep(plan(tmp_path, judge_sigma, episodes=4, **settings))
    assert [trial["overrides"][SIGMA] for trial in trials] == proposals(tmp_path, lambda sigma: -sigma, **settings)
