import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from fake_tuning import tiny_config

from cluster.episode_groups import EpisodePlan, hand_out
from cluster.episodic_ppo import algorithm_config

PLAN = EpisodePlan(0, 0, tuple((0, 0, episode) for episode in range(8)), group_size=2)


class Manager:
    """What `hand_out` uses of RLlib's."""

    def __init__(self, actors):
        self.handles, self.dead = actors, []

    def actors(self):
        return self.handles

    def set_actor_state(self, runner, healthy):
        self.dead.append(runner)


class Runner:
    """What `run_group` uses of an env runner; `trouble` comes with its first group."""

    def __init__(self, index, trouble, done):
        self.worker_index, self.trouble, self.done = index, trouble, done
        self.module = SimpleNamespace(set_state=lambda weights: None)
        self.env = SimpleNamespace(env=SimpleNamespace(prepare=self.prepare))

    def prepare(self, case_index, seeds):
        self.seeds = list(seeds)

    def sample(self, num_episodes):
        if self.trouble == "dies":
            ray.actor.exit_actor()
        while self.trouble == "hangs" or (self.trouble == "is slow" and len(list(self.done.iterdir())) < 3):
            time.sleep(0.01)
        (self.done / f"{self.seeds[0][-1]}").touch()
        return self.seeds

    def get_metrics(self):
        return {}

    def apply(self, func):
        return func(self)


@pytest.fixture(scope="module")
def cluster():
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, runtime_env=environment)
    yield
    ray.shutdown()


def handed_out(tmp_path, trouble, timeout_s=600.0):
    actors = {index: ray.remote(Runner).remote(index, what, tmp_path) for index, what in ((1, trouble), (2, None))}
    ray.get([actor.apply.remote(lambda runner: runner.worker_index) for actor in actors.values()])
    manager = Manager(actors)
    answers = list(hand_out(SimpleNamespace(_worker_manager=manager), [1, 2], {}, PLAN, range(4), timeout_s))
    for actor in actors.values():
        ray.kill(actor)
    assert all(answer.episodes == list(PLAN.groups[answer.index]) for answer in answers)
    return answers, manager.dead


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_whoever_is_done_takes_the_next_group(cluster, tmp_path):
    answers, dead = handed_out(tmp_path, "is slow")
    assert [(answer.runner, answer.index) for answer in answers] == [(2, 1), (2, 2), (2, 3), (1, 0)]
    assert dead == []


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("trouble", "timeout_s"), [("dies", 600.0), ("hangs", 2.0)])
def test_the_group_of_a_lost_runner_has_no_answer_and_the_others_have(cluster, tmp_path, trouble, timeout_s):
    answers, dead = handed_out(tmp_path, trouble, timeout_s)
    assert [(answer.runner, answer.index) for answer in answers] == [(2, 1), (2, 2), (2, 3)]
    assert dead == [1]


@pytest.mark.parametrize(("asked", "started"), [(0, 0), (1, 1), (2, 2), (4, 2)])
def test_no_more_runners_are_started_than_there_are_groups(asked, started):
    assert algorithm_config(tiny_config(num_env_runners=asked)).num_env_runners == started


def test_groups_do_not_depend_on_the_number_of_runners():
    assert len({tiny_config(num_env_runners=number).group_size for number in (0, 1, 2, 4)}) == 1
