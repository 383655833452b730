"""RLlib's PPO with a fixed list of whole episodes an iteration, so that learning does not depend on who ran what, when, or twice.

    plan → (weights, case, noise seeds of a group) to any env runner → episodes in the plan's order → RLlib's learner

A group is what one env runner tunes side by side (`episode_groups`). A runner that dies is restarted and its group is run again, to the same result.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import gymnasium
import numpy as np
import torch
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, LEARNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune.registry import register_env

from cluster.episode_groups import Answer, EpisodePlan, ProxyRunner, hand_out, run_group, time_limit
from cluster.exploration import ExplorationNoise, noise_size
from cluster.policy_modules import PolicyModule, module_spec
from proxymix.config import Config
from proxymix.errors import UserError

MAX_ROUNDS = 5
"""Times that missing groups of one iteration are handed out before the training gives up."""

RESTART_TIMEOUT_S = 300.0
"""For at least one env runner to live."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan."""

    infos: tuple[dict[str, Any], ...]
    """Of each episode's last step."""
    returns: tuple[float, ...]
    num_dropped: int
    """Episodes that were under way when their runner died or hung, and were run again."""
    sample_seconds: float
    learn_seconds: float
    cpu_seconds: float
    """Process time of the episodes, where they ran, and of learning."""
    busy_seconds: tuple[float, ...] = ()
    """Of each env runner that had any of the episodes, the longest first; what is left of `sample_seconds` it waited."""


class EpisodicPPO(PPO):
    """Set `plan`, call `train`, read `outcome`."""

    plan: EpisodePlan
    outcome: Outcome
    slowest_step_s = 0.0
    """Most seconds that a group of episodes has taken per optimizer step."""
    cpu_seconds = 0.0
    """Process time of all episodes so far."""
    num_dropped = 0
    """Episodes of the latest plan that were lost with their env runner."""
    busy_seconds: defaultdict[int, float]
    """Seconds that each env runner spent on the latest plan."""

    @classmethod
    def get_default_config(cls) -> PPOConfig:
        """PPO's."""
        return PPOConfig(algo_class=cls)

    def learner(self) -> Learner:
        """The one learner, in this process."""
        learner: Learner = self.learner_group.foreach_learner(lambda learner: learner).result_or_errors[0].get()
        return learner

    def module(self) -> PolicyModule:
        """The module that learns."""
        module: PolicyModule = self.learner().module[DEFAULT_MODULE_ID]
        return module

    def cleanup(self) -> None:
        """Ends the env runners at once: RLlib would first wait, without limit, for those that are busy or hang."""
        self.env_runner_group._worker_manager.clear()
        super().cleanup()

    def training_step(self) -> None:
        """PPO's training step with the plan's episodes in the plan's order."""
        started, cpu_before = time.perf_counter(), self.cpu_seconds
        episodes = self._collect()
        sampled, cpu_sampled = time.perf_counter(), time.process_time()
        infos, returns = tuple(e.get_infos(-1) for e in episodes), tuple(float(e.get_return()) for e in episodes)
        self._learn(episodes)
        cpu_seconds = self.cpu_seconds - cpu_before + time.process_time() - cpu_sampled
        busy = tuple(sorted(self.busy_seconds.values(), reverse=True))
        self.outcome = Outcome(infos, returns, self.num_dropped, sampled - started, time.perf_counter() - sampled, cpu_seconds, busy)

    def _learn(self, episodes: Sequence[SingleAgentEpisode]) -> None:
        config = self.config
        # RLlib shuffles minibatches with numpy's global generator.
        np.random.seed(np.random.SeedSequence([config.seed, self.plan.iteration]).generate_state(1))
        results = self.learner_group.update(
            episodes=list(episodes),
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 0},
            num_epochs=config.num_epochs,
            minibatch_size=config.minibatch_size,
            shuffle_batch_per_epoch=config.shuffle_batch_per_epoch,
        )
        self.metrics.aggregate(results, key=LEARNER_RESULTS)

    def _collect(self) -> list[SingleAgentEpisode]:
        """Every episode of the plan."""
        weights, group = self.module().get_state(), self.env_runner_group
        missing = list(range(len(self.plan.groups)))
        done: dict[int, list[SingleAgentEpisode]] = {}
        self.num_dropped, self.busy_seconds = 0, defaultdict(float)
        if not group.num_remote_env_runners():
            done, missing = self._accept(run_group(group.local_env_runner, weights, self.plan, index) for index in missing), []
        for attempt in range(MAX_ROUNDS):
            if not missing:
                return [episode for index in sorted(done) for episode in done[index]]
            runners = self._live_runners(group)
            # Doubled each time: a machine that has become slow must not end a training.
            timeout_s = partial(self._timeout_s, 2**attempt)
            done |= self._accept(hand_out(group, runners, weights, self.plan, missing, timeout_s))
            missing = [index for index in missing if index not in done]
        raise RuntimeError(
            f"controller training: groups {missing} of iteration {self.plan.iteration} were lost {MAX_ROUNDS} times; "
            "env runners die or hang, see Ray's worker logs"
        )

    def _timeout_s(self, times: int) -> float:
        return times * time_limit(self.plan, self.slowest_step_s)

    def _live_runners(self, group: EnvRunnerGroup) -> list[int]:
        """Those that can take episodes now, the dead ones brought back where Ray has restarted them; waits for one."""
        deadline = time.monotonic() + RESTART_TIMEOUT_S
        while True:
            self.restore_env_runners(group)
            runners: list[int] = group.healthy_env_runner_ids()
            if runners:
                return runners
            if time.monotonic() > deadline:
                raise RuntimeError(f"controller training: no env runner came back within {RESTART_TIMEOUT_S:g} s; see Ray's worker logs")
            time.sleep(0.5)

    def _accept(self, answers: Iterable[Answer]) -> dict[int, list[SingleAgentEpisode]]:
        """Episodes by the group's place in the plan.

        Raises:
            UserError: what an episode found wrong with the input.
            RuntimeError: an episode failed.
        """
        done, metrics = {}, []
        for answer in answers:
            if answer.mistake is not None:
                raise UserError(answer.mistake)
            if answer.failure is not None:
                raise RuntimeError(f"controller training: an episode failed on env runner {answer.runner}\n{answer.failure}")
            if answer.lost:
                self.num_dropped += self.plan.group_size * answer.begun
                continue
            done[answer.index] = answer.episodes
            metrics.append(answer.metrics)
            self.cpu_seconds += answer.cpu_seconds
            self.slowest_step_s = max(self.slowest_step_s, answer.seconds / self.plan.num_steps)
            self.busy_seconds[answer.runner] += answer.seconds
        self.metrics.aggregate(metrics, key=ENV_RUNNER_RESULTS)
        return done


def build_algorithm(config: Config, environment: Callable[[int], gymnasium.vector.VectorEnv[Any, Any, Any]]) -> EpisodicPPO:
    """PPO with its env runners started; needs Ray to be initialised.

    `environment` makes a vector environment of so many proxies, whose episodes begin and end together, with `select_case(index)`.
    """
    controller, on_runner = config.controller, config.controller.num_env_runners > 0

    def make(context: Mapping[str, Any]) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        if on_runner:
            torch.set_num_threads(1)
        return ExplorationNoise(environment(context["num_envs"]), noise_size(controller), every_decision=controller.exploration == "per_decision")

    # RLlib's registry is one for the whole Ray job: by one name, trainings side by side would play each other's environment.
    name = f"proxymix-{uuid4().hex}"
    register_env(name, make)
    algorithm: EpisodicPPO = algorithm_config(config).environment(name).build_algo()
    return algorithm


def algorithm_config(config: Config) -> PPOConfig:
    """RLlib's configuration of `config.controller`; the comments say what RLlib would do otherwise.

    Raises:
        UserError: a minibatch is larger than the batch.
    """
    controller, ppo = config.controller, config.controller.ppo
    decisions = controller.episodes_per_iteration * math.ceil(config.tuning.stages_per_task / controller.decide_every)  # Per task.
    fewest, batch_size = (decisions * tasks for tasks in (controller.curriculum.fewest_tasks, controller.curriculum.most_tasks))
    if (ppo.minibatch_size or 0) > fewest:
        raise UserError(f"controller.ppo.minibatch_size: must be at most the {fewest} decisions of a shortest iteration, got {ppo.minibatch_size}")
    return (
        PPOConfig(algo_class=EpisodicPPO)
        # Logits are unbounded: RLlib would squash them into the action space.
        .environment(normalize_actions=False, clip_actions=False)
        .env_runners(
            env_runner_cls=ProxyRunner,
            num_env_runners=config.started_env_runners,
            num_cpus_per_env_runner=1,
            num_gpus_per_env_runner=config.proxy.gpus_per_runner,
            num_envs_per_env_runner=config.group_size,
            gym_env_vectorize_mode="vector_entry_point",
            batch_mode="complete_episodes",
            # Connectors here have no state. By default every iteration waits until each runner has sent its own, then sends all of them the mean.
            merge_env_runner_states=False,
            broadcast_env_runner_states=False,
        )
        .learners(num_learners=0)
        .fault_tolerance(
            restart_failed_env_runners=True,
            max_num_env_runner_restarts=1000,
            delay_between_env_runner_restarts_s=0.0,
            env_runner_health_probe_timeout_s=60.0,
        )
        .rl_module(rl_module_spec=module_spec(controller, config.training_seed))
        .training(
            lr=controller.learning_rate,
            gamma=ppo.discount,
            lambda_=ppo.gae_lambda,
            clip_param=ppo.clip,
            entropy_coeff=ppo.entropy_coeff,
            vf_loss_coeff=ppo.value_coeff,
            # By default the critic stops learning where its squared error exceeds 10; paired rewards go far beyond.
            vf_clip_param=float("inf"),
            use_kl_loss=False,
            grad_clip=ppo.max_grad_norm,
            num_epochs=ppo.num_epochs,
            minibatch_size=ppo.minibatch_size,
            # Shuffling a full batch changes nothing but the order of its sums.
            shuffle_batch_per_epoch=ppo.minibatch_size is not None,
            train_batch_size_per_learner=batch_size,
        )
        .debugging(log_level="ERROR", seed=config.training_seed)
    )
