"""Spaces, held-out cases and the choice among trials, without Ray."""

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxymix.config import load_config, validated
from proxymix.controller_config import SweptConfig
from proxymix.errors import UserError
from proxymix.sweep_result import best_config, best_trial, sweep_table
from proxymix.sweep_space import DEFAULT_SPACE, check_sweep, draw, overrides_of, pbt_dimensions, sweep_space, trial_config, validation_cases

OWN = [{"name": name, "format": "jsonl", "path": f"{name}.jsonl"} for name in "abcdef"]


def sweep_config(controller=None, sequence=None, **sweep):
    return validated({"name": "sweep", "sequence": sequence or {"tasks": "long@heldout-0"}, "controller": controller or {}, "sweep": sweep}, "test")


def own_data(training, validation, tasks=("a",)):
    by_name = {spec["name"]: spec for spec in OWN}
    return validated(
        {
            "name": "own",
            "pretraining": {"tokenizer": "bpe"},
            "sequence": {"tasks": [by_name[name] for name in tasks]},
            "controller": {"curriculum": {"num_tasks": 2, "pool": [by_name[name] for name in training]}},
            "sweep": {"validation": {"pool": validation and [by_name[name] if isinstance(name, str) else name for name in validation]}},
        },
        "test",
    )


def drawn(config, seed):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    draw(sweep_space(config), config.model_dump(mode="json"), trial)
    return overrides_of(trial.params)


@pytest.fixture(autouse=True)
def quiet_optuna():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@given(st.integers(0, 10**6))
def test_every_draw_of_the_default_space_is_a_config_and_keeps_its_conditions(seed):
    config = sweep_config()
    overrides = drawn(config, seed)
    controller = trial_config(config, overrides).controller
    assert overrides.keys() <= DEFAULT_SPACE.keys()
    assert ("controller.reward.lambda" in overrides) == (controller.reward.kind == "paper")
    if controller.architecture == "flat":
        assert controller.hidden_units in (64, 256)
        assert 1e-4 <= controller.learning_rate <= 3e-3
    else:
        assert controller.reward.kind == "paired"
        assert controller.hidden_units in (0, 8)
        assert 0.01 <= controller.learning_rate <= 0.15


def test_both_sides_of_every_condition_are_reached():
    seen = [drawn(sweep_config(), seed) for seed in range(60)]
    assert {key for overrides in seen for key in overrides} == set(DEFAULT_SPACE)
    assert {overrides["controller.architecture"] for overrides in seen} == {"flat", "equivariant"}


def test_a_condition_may_look_at_what_is_not_swept():
    space = {"controller.ppo.clip": [{"uniform": [0.1, 0.2], "when": {"controller.architecture": ["flat"]}}]}
    assert drawn(sweep_config(space=space), 0) == {}
    assert drawn(sweep_config({"architecture": "flat"}, space=space), 0).keys() == {"controller.ppo.clip"}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"space": {"tuning.batch_size": {"choice": [8]}}}, "must lie below controller."),
        ({"space": {"controller.episodes": {"choice": [8]}}}, "must leave controller.episodes"),
        ({"space": {"controller.curriculum.num_cases": {"choice": [8]}}}, "controller.curriculum alone"),
        ({"space": {"controller.ppo.clip": {"uniform": [0.2, 0.1]}}}, "the smaller first"),
        ({"space": {"controller.ppo.clip": {"log_uniform": [0, 0.1]}}}, "positive"),
        ({"space": {"controller.ppo.clip": {"uniform": [0.1, 0.2], "choice": [1]}}}, "exactly one of"),
        ({"space": {"controller.ppo.clip": {"uniform": [0, 1], "when": {"controller.ppo.x": 1}}, "controller.ppo.x": {"choice": [1]}}}, "further up"),
        ({"scheduler": "pbt", "search": "optuna"}, "search must be random"),
    ],
)
def test_a_wrong_sweep_is_no_config(sweep, message):
    with pytest.raises(UserError, match=message):
        sweep_config(**sweep)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"episodes_per_rung": 96}, "must divide controller.episodes"),
        ({"episodes_per_rung": 8}, "multiple of controller.episodes_per_iteration"),
        ({"space": {"controller.episodes_per_iteration": {"choice": [16, 32]}}}, r"episodes_per_iteration, got 80 and 32"),
        ({"space": {"controller.ppo.clip": {"uniform": [-1.0, 0.3]}}}, r"controller.ppo.clip.*greater than 0"),
        ({"space": {"controller.ppo.clop": {"uniform": [0.1, 0.3]}}}, "controller.ppo.clop"),
        ({"space": {"controller.ppo": {"choice": [1]}}}, "controller.ppo"),
        ({"scheduler": "pbt", "space": {"controller.architecture": {"choice": ["flat"]}}}, "only continuous keys of controller.ppo"),
        ({"scheduler": "pbt", "space": {"controller.ppo.num_epochs": {"integer": [1, 4]}}}, "controller.ppo.num_epochs"),
    ],
)
def test_what_would_go_wrong_in_the_middle_is_told_before(sweep, message):
    with pytest.raises(UserError, match=message):
        check_sweep(sweep_config(**sweep))


@pytest.mark.parametrize("scheduler", ["asha", "pbt", "none"])
def test_the_built_in_spaces_are_sound(scheduler):
    check_sweep(sweep_config(scheduler=scheduler))


def test_a_population_sweeps_the_learning_rate_that_suits_its_architecture():
    assert pbt_dimensions(sweep_config(scheduler="pbt"))["controller.ppo.learning_rate"].bounds == (0.01, 0.15)
    flat = sweep_config({"architecture": "flat"}, scheduler="pbt")
    assert pbt_dimensions(flat)["controller.ppo.learning_rate"].bounds == (1e-4, 3e-3)


def test_validation_cases_are_reproducible_and_of_their_own_worlds():
    cases = validation_cases(sweep_config(validation={"num_cases": 6}))
    assert cases == validation_cases(sweep_config(validation={"num_cases": 6}))
    assert len({case.seed for case in cases}) == 6
    assert {task.world for case in cases for task in case.tasks} <= {"validation-0", "validation-1", "validation-2"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: sweep_config(validation={"worlds": ["validation-0", "train-1"]}), "controller.curriculum.*train-1"),
        (lambda: sweep_config(validation={"worlds": ["heldout-0"]}), "sequence.tasks.*heldout-0"),
        (lambda: sweep_config(validation={"worlds": ["vaildation-0"]}), "world: must be one of"),
        (lambda: own_data("bc", None), "validation.pool: must be given"),
        (lambda: own_data("bc", "cd"), "controller.curriculum.*c.jsonl"),
        (lambda: own_data("bc", "ad"), "sequence.tasks.*a.jsonl"),
        (lambda: own_data("bc", ["d", {"name": "other", "format": "jsonl", "path": "c.jsonl"}]), "controller.curriculum.*c.jsonl"),
        (lambda: own_data("bc", "d"), "num_tasks: must be at most"),
        (lambda: own_data("bc", "dd"), "names must be unique"),
    ],
)
def test_validation_that_is_not_held_out_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        validation_cases(config())


def test_own_data_is_validated_on_its_own_sources():
    cases = validation_cases(own_data("bc", "def"))
    assert {task.label for case in cases for task in case.tasks} <= set("def")


def trial(number, *scores, returns=0.0, status="finished", **overrides):
    rows = [{"episodes": 80 * (n + 1), "validation_score": s, "validation_scores": [s, s], "training_return": returns} for n, s in enumerate(scores)]
    return {"trial": number, "status": status, "overrides": overrides or {"controller.ppo.clip": 0.1}, "rungs": rows, "error": None}


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1e6, 1e6)), min_size=1, max_size=8))
def test_the_return_in_training_cannot_choose(pairs):
    chosen = best_trial([trial(n, score, returns=value) for n, (score, value) in enumerate(pairs)])
    assert chosen["rungs"][-1]["validation_score"] == max(score for score, _ in pairs)
    assert chosen["trial"] == int(np.argmax([score for score, _ in pairs]))


def test_only_those_that_finished_can_win():
    lost = trial(4, 0.1, 0.2, 0.9, status="failed") | {"error": "no memory"}
    trials = [trial(0, 0.9, status="stopped"), trial(1, 0.1, 0.2), trial(2, 0.5, 0.1), trial(3, status="failed"), lost]
    assert best_trial(trials)["trial"] == 1
    with pytest.raises(UserError, match="a trial must finish, got none of 2; the first error: no memory;"):
        best_trial([trials[0], lost])


def test_the_best_configuration_is_a_whole_run_of_its_own(tmp_path):
    config = sweep_config(validation={"num_cases": 3})
    (tmp_path / "best.yaml").write_text(best_config(config, trial(4, 0.1, **{"controller.ppo.clip": 0.33, "controller.architecture": "flat"})))
    best = load_config(tmp_path / "best.yaml")
    assert best.name == "sweep-best"
    assert (best.controller.ppo.clip, best.controller.architecture) == (0.33, "flat")
    different = {key for key, value in config.model_dump().items() if value != best.model_dump()[key]}
    assert different == {"name", "controller", "sweep"}
    assert "sweep" not in yaml.safe_load((tmp_path / "best.yaml").read_text())
    (tmp_path / "best.yaml").write_text(best_config(config, trial(4, 0.1), SweptConfig(id="abc", flops=10, episodes=4)))
    assert load_config(tmp_path / "best.yaml").controller.swept == SweptConfig(id="abc", flops=10, episodes=4)


def test_the_table_has_a_row_a_trial_the_best_first():
    table = sweep_table([trial(0, 0.01, status="stopped"), trial(1, 0.01, 0.021), trial(2, status="failed")])
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["1", "0", "2"]
    assert columns[4][0] == "+2.1 ±0.0"
    assert columns[4][2] == "–"


def test_the_table_tells_lost_episodes():
    disturbed = trial(1, 0.01, 0.02)
    disturbed["rungs"] = [rung | {"num_dropped": 8} for rung in disturbed["rungs"]]
    column = sweep_table([trial(0, 0.03, 0.04), disturbed]).columns[3]
    assert (column.header, list(column.cells)) == ("dropped", ["0", "16"])
