"""How many env runners are started of those asked for, what is reserved for them, and what a person is told."""

import re

import pytest
from fake_tuning import fake_cases, tiny_config
from hypothesis import given
from hypothesis import strategies as st

import jobs.train_controller as job
from cluster.episodic_ppo import algorithm_config
from cluster.policy_training import TrainingResult
from cluster.session import _needs
from cluster.sweep_trial import SweepPlan
from jobs.run import Run
from proxymix.config import validated


@pytest.mark.parametrize(("asked", "started"), [(0, 0), (1, 1), (2, 2), (3, 2), (8, 2)])
def test_no_more_runners_are_started_or_reserved_than_there_are_groups(asked, started):
    config = tiny_config(num_env_runners=asked)
    assert algorithm_config(config).num_env_runners == config.started_env_runners == started
    assert _needs(config) == _needs(tiny_config(num_env_runners=started))


def test_a_run_reserves_every_runner_that_it_starts():
    few, many = (tiny_config(num_env_runners=asked, episodes_per_iteration=8, proxies_side_by_side=1) for asked in (2, 7))
    assert _needs(many).cpus == _needs(few).cpus + 5


def test_groups_do_not_depend_on_the_number_of_runners():
    assert len({tiny_config(num_env_runners=number).group_size for number in (0, 1, 2, 3, 4)}) == 1


@given(asked=st.integers(0, 40), episodes=st.integers(2, 32), side_by_side=st.integers(1, 16))
def test_the_remedy_that_is_told_starts_all_of_them(asked, episodes, side_by_side):
    settings = {"num_env_runners": asked, "episodes": episodes, "episodes_per_iteration": episodes, "proxies_side_by_side": side_by_side}
    config = tiny_config(**settings)
    words = job.idle_runners(config)
    assert (words is None) == (config.started_env_runners == asked)
    if words and (told := re.search(r"lower controller.proxies_side_by_side to (\d+)$", words)):
        config = tiny_config(**settings | {"proxies_side_by_side": int(told.group(1))})
        assert config.started_env_runners == asked
    elif words:
        assert asked > episodes
        assert words.endswith("lower controller.num_env_runners (or raise controller.episodes_per_iteration)")


def test_the_words_are_said_once_a_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "with_references", lambda config, base, cases, *rest: tuple(cases))
    monkeypatch.setattr(job, "train_policy", lambda config, base, cases, *rest: TrainingResult({}, [], tuple(cases)))
    monkeypatch.setattr(job, "freeze_controller", lambda *rest: "")
    config = tiny_config(num_env_runners=8).model_copy(update={"runs_root": str(tmp_path)})
    run = Run.open(config, "ablate")
    for prefix in ("full/", "flat/"):
        job.learn(run, config, "base", fake_cases(), tmp_path, prefix)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("controller.num_env_runners: 2 of 8 are started, one for each group of 2 in an iteration of 4 episodes") == 1


def test_lost_episodes_are_told_as_they_happen(tmp_path, monkeypatch, capsys):
    rows = [{"iteration": index, "episodes": 4, "flops": 40, "cpu_seconds": 1.0, "num_dropped": dropped} for index, dropped in enumerate((0, 2))]

    def train(config, base, cases, out, note):
        for row in rows:
            note(row)
        return TrainingResult({}, rows, tuple(cases))

    monkeypatch.setattr(job, "with_references", lambda config, base, cases, *rest: tuple(cases))
    monkeypatch.setattr(job, "train_policy", train)
    monkeypatch.setattr(job, "freeze_controller", lambda *rest: "")
    run = Run.open(tiny_config().model_copy(update={"runs_root": str(tmp_path)}), "train_controller")
    job.learn(run, run.config, "base", fake_cases(), tmp_path)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("iteration1: 2 episodes were lost with an env runner that died or hung, and run again") == 1
    assert "iteration0:" not in said
    assert [line.episodes for line in run.account.lines()] == [4, 4, 2]


def test_a_trial_reserves_what_it_starts(tmp_path):
    tree = tiny_config().model_dump(mode="json") | {"sweep": {"num_env_runners": 3, "episodes_per_rung": 4}}
    plan = SweepPlan(validated(tree, "test"), "base", (), (), tmp_path)
    assert plan.num_env_runners == 2
    assert "sweep.num_env_runners: 2 of 3 are started" in job.idle_runners(plan.trial_defaults, "sweep.num_env_runners")
