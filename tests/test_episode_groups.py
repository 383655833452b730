import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from own_ray import own_ray
from ray.exceptions import RayError

from cluster.episode_groups import Answer, EpisodePlan, hand_out, time_limit
from cluster.episodic_ppo import EpisodicPPO

PLAN = EpisodePlan(0, 0, tuple((0, 0, episode) for episode in range(8)), num_steps=600, group_size=2)


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
    with own_ray(2, {"PYTHONPATH": str(Path(__file__).parent)}):
        yield


def handed_out(tmp_path, trouble, timeout_s=600.0):
    actors = {index: ray.remote(Runner).remote(index, what, tmp_path) for index, what in ((1, trouble), (2, None))}
    ray.get([actor.apply.remote(lambda runner: runner.worker_index) for actor in actors.values()])
    if trouble == "died idle":
        with suppress(RayError):
            ray.get(actors[1].apply.remote(lambda runner: ray.actor.exit_actor()))
    manager = Manager(actors)
    answers = list(hand_out(SimpleNamespace(_worker_manager=manager), [1, 2], {}, PLAN, range(4), lambda: timeout_s))
    for actor in actors.values():
        ray.kill(actor)
    assert all(answer.episodes == ([] if answer.lost else list(PLAN.groups[answer.index])) for answer in answers)
    return answers, manager.dead


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_whoever_is_done_takes_the_next_group(cluster, tmp_path):
    answers, dead = handed_out(tmp_path, "is slow")
    assert [(answer.runner, answer.index) for answer in answers] == [(2, 1), (2, 2), (2, 3), (1, 0)]
    assert dead == []


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("trouble", "timeout_s"), [("dies", 600.0), ("hangs", 2.0), ("died idle", 600.0)])
def test_the_group_of_a_lost_runner_is_lost_and_the_others_are_not(cluster, tmp_path, trouble, timeout_s):
    answers, dead = handed_out(tmp_path, trouble, timeout_s)
    assert [(answer.runner, answer.index) for answer in answers if not answer.lost] == [(2, 1), (2, 2), (2, 3)]
    lost = [(answer.runner, answer.index, answer.begun) for answer in answers if answer.lost]
    assert lost == [(1, 0, trouble != "died idle")]  # What was not begun has cost nothing.
    assert dead == [1]


def test_what_was_not_begun_is_not_dropped():
    algorithm = SimpleNamespace(num_dropped=0, plan=PLAN, metrics=SimpleNamespace(aggregate=lambda metrics, key: None))
    EpisodicPPO._accept(algorithm, [Answer(1, 0, [], {}, lost=True, begun=False), Answer(2, 1, [], {}, lost=True)])
    assert algorithm.num_dropped == PLAN.group_size


@pytest.mark.parametrize(
    ("slowest_step_s", "reference_step_s", "num_steps", "seconds"),
    [
        (0.2, None, 600, 10 * 0.2 * 600),
        (0.2, None, 1200, 10 * 0.2 * 1200),  # A longer case is not judged by shorter ones.
        (0.2, 9.0, 600, 10 * 0.2 * 600),  # What groups took themselves comes first.
        (0.0, 0.05, 600, 10 * 2 * 0.05 * 600),  # Two proxies, at worst one after the other.
        (0.2, None, 30, 120.0),
        (0.0, 0.001, 600, 120.0),
        (0.0, None, 600, 3600.0),
    ],
)
def test_a_group_may_take_what_its_steps_took_before(slowest_step_s, reference_step_s, num_steps, seconds):
    plan = replace(PLAN, num_steps=num_steps, reference_step_s=reference_step_s)
    assert time_limit(plan, slowest_step_s) == pytest.approx(seconds)
