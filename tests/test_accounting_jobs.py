"""What the jobs write into the account beside what the runs themselves write."""

import numpy as np
import pytest

from jobs.ablate import check_settings
from jobs.run import Run
from jobs.train_controller import account_for, check_given, train_controller
from proxymix.account import Account, total_flops
from proxymix.config import validated
from proxymix.controllers.frozen import FrozenController, save_controller
from proxymix.controllers.policy import initial_parameters
from proxymix.errors import UserError

ROW = {"iteration": 3, "episodes": 8, "flops": 800, "cpu_seconds": 4.0, "num_dropped": 0}


def test_lost_episodes_are_spent_and_not_made(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    account_for(account, ROW | {"num_dropped": 2})
    lines = [(line.id, line.flops, line.cpu_seconds, line.episodes) for line in account.lines()]
    assert lines == [("iteration3", 800, 4.0, 8), ("iteration3", 200, 1.0, 2)]
    assert (total_flops(account.made("episodes")), total_flops(account.spent())) == (800, 1000)


def test_an_iteration_without_losses_is_one_line(tmp_path):
    account = Account(tmp_path / "costs.jsonl")
    account_for(account, ROW)
    assert len(account.lines()) == 1


def test_a_given_controller_is_copied_and_costs_what_learning_it_took(tmp_path):
    facts = {"training_flops": 700, "training_cost": {"episodes": 320}}
    parameters = initial_parameters("equivariant", 0, 6, np.random.default_rng(0))
    sha256 = save_controller(tmp_path / "given", parameters, name="proxymix", architecture="equivariant", facts=facts)
    tree = {"name": "one", "runs_root": str(tmp_path), "sequence": {"tasks": "long@heldout-0"}, "controller": {"path": str(tmp_path / "given")}}
    run = Run.open(validated(tree, "test"), "pipeline")
    for _ in range(2):  # The second time as a resumed run.
        assert train_controller(run, "no base is needed").sha256 == sha256
    assert FrozenController.load(run.folder / "controller").sha256 == sha256
    (line,) = run.account.lines()
    assert (line.flops, line.cached, line.episodes) == (700, True, 320)


def test_a_controller_of_swept_settings_has_cost_the_sweep_too(tmp_path, monkeypatch):
    parameters = initial_parameters("equivariant", 0, 6, np.random.default_rng(0))

    def learn(run, config, base, cases, folder):
        save_controller(folder, parameters, name="proxymix", architecture="equivariant", facts={})

    monkeypatch.setattr("jobs.train_controller.learn", learn)
    swept = {"id": "abc", "flops": 700, "episodes": 320}
    tree = {"name": "one-best", "runs_root": str(tmp_path), "sequence": {"tasks": "long@heldout-0"}, "controller": {"swept": swept}}
    run = Run.open(validated(tree, "test"), "pipeline")
    for _ in range(2):  # The second time as a resumed run.
        train_controller(run, "no base is needed")
    (line,) = run.account.lines()
    assert (line.item, line.id, line.flops, line.cached, line.episodes) == ("sweep_trial", "given/abc", 700, True, 320)


def test_a_given_controller_that_is_none_is_the_users_to_mend(tmp_path):
    tree = {"name": "one", "runs_root": str(tmp_path), "sequence": {"tasks": "long@heldout-0"}, "controller": {"path": str(tmp_path / "nothing")}}
    with pytest.raises(UserError, match="cannot read"):
        train_controller(Run.open(validated(tree, "test"), "pipeline"), "")


@pytest.mark.parametrize(
    ("controller", "message"),
    [({"decide_every": 2}, r"controller.decide_every: must be 1"), ({"path": "flat"}, r"for the 7 sources of the sequence, got one for 6")],
)
def test_a_given_controller_that_cannot_steer_the_run_is_refused_at_once(tmp_path, controller, message):
    for architecture in ("equivariant", "flat"):
        parameters = initial_parameters(architecture, 8, 6, np.random.default_rng(0))
        save_controller(tmp_path / architecture, parameters, name="proxymix", architecture=architecture, facts={})
    path = tmp_path / controller.pop("path", "equivariant")
    tree = {
        "name": "one",
        "sequence": {"tasks": "long@heldout-0"},
        "controller": {"path": str(path), "max_sources": 6, "curriculum": {"num_tasks": 3}},
    }
    tree["controller"] |= controller
    with pytest.raises(UserError, match=message):
        check_given(validated(tree, "test"))


def test_jobs_that_learn_their_controllers_take_none():
    tree = {"name": "one", "sequence": {"tasks": "long@heldout-0"}, "controller": {"path": "somewhere"}}
    with pytest.raises(UserError, match=r"controller.path: must be null for jobs.ablate"):
        check_settings(validated(tree, "test"))
    with pytest.raises(UserError, match="exclude each other"):
        validated(tree | {"service": {"url": "http://127.0.0.1:1"}}, "test")
