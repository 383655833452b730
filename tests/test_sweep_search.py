"""What a searcher proposes, told scores as Tune tells them: TPE must follow them, random search must not."""

import pytest
from fake_sweep import SIGMA, plan

from cluster.sweep import search_algorithm
from cluster.sweep_trial import METRIC
from proxymix.sweep_config import SweepConfig
from proxymix.sweep_space import overrides_of

LOW, HIGH = 0.2, 0.9


def proposals(tmp_path, score, **sweep):
    """Sigmas, each proposed after all before it were scored."""
    search, proposed = search_algorithm(plan(tmp_path, None, **sweep).config), []
    for trial in map(str, range(sweep["num_trials"])):
        proposed.append(overrides_of(search.suggest(trial))[SIGMA])
        result = {METRIC: score(proposed[-1]), "training_iteration": 1}
        search.on_trial_result(trial, result)
        search.on_trial_complete(trial, result)
    return proposed


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize(("given", "startup"), [({}, 6), ({"startup_trials": 3}, 3)])
def test_tpe_draws_a_few_and_then_follows_the_scores(tmp_path, given, startup):
    small, large = (proposals(tmp_path, score, search="optuna", num_trials=24, **given) for score in (lambda sigma: -sigma, lambda sigma: sigma))
    assert small[:startup] == large[:startup]
    assert small[startup] != large[startup]
    assert mean(small[startup:]) < mean(small[:startup]) < mean(large[startup:])
    assert mean(small[-8:]) < LOW + (HIGH - LOW) / 3
    assert mean(large[-8:]) > HIGH - (HIGH - LOW) / 3


def test_tpe_proposes_in_a_small_sweep_too(tmp_path):
    assert [SweepConfig(num_trials=number).num_startup_trials for number in (1, 2, 3, 6, 12, 16, 100)] == [1, 1, 1, 3, 6, 6, 6]
    small, large = (proposals(tmp_path, score, search="optuna", num_trials=6) for score in (lambda sigma: -sigma, lambda sigma: sigma))
    assert small[:3] == large[:3]
    assert small[3:] != large[3:]


def test_random_search_proposes_the_same_whatever_the_scores(tmp_path):
    small, large = (proposals(tmp_path, score, search="random", num_trials=8) for score in (lambda sigma: -sigma, lambda sigma: sigma))
    assert small == large
