"""An iteration's episodes in groups, each run side by side by one env runner, handed out as runners come free.

    plan → (weights, case, noise seeds of a group) → the next free env runner → episodes, by the group's place in the plan

What a group is depends on the configuration alone, never on how many runners there are; nor does who runs it, or when, change its episodes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from proxymix.errors import UserError


@dataclass(frozen=True)
class EpisodePlan:
    """One iteration's episodes."""

    iteration: int
    case_index: int
    noise_seeds: tuple[tuple[int, ...], ...]
    """One per episode; nothing else tells the episodes of an iteration apart."""
    group_size: int = 1
    """Episodes that are run side by side; divides their number."""

    @property
    def groups(self) -> list[tuple[tuple[int, ...], ...]]:
        """Noise seeds by group."""
        starts = range(0, len(self.noise_seeds), self.group_size)
        return [self.noise_seeds[start : start + self.group_size] for start in starts]


@dataclass(frozen=True)
class Answer:
    """What an env runner sends back of one group."""

    runner: int
    index: int
    """Place in the plan."""
    episodes: list[SingleAgentEpisode]
    metrics: dict[str, Any]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    mistake: str | None = None
    """The message of a UserError."""
    failure: str | None = None
    """A traceback: a fault of the program, which running the episodes again would only repeat."""


def run_group(runner: SingleAgentEnvRunner, weights: Any, plan: EpisodePlan, index: int) -> Answer:
    """Group `index` of the plan, a function of these arguments alone."""
    started, began = time.perf_counter(), time.process_time()
    try:
        runner.module.set_state(weights)
        runner.env.env.prepare(plan.case_index, plan.groups[index])
        episodes, metrics = runner.sample(num_episodes=plan.group_size), runner.get_metrics()
        return Answer(runner.worker_index, index, episodes, metrics, time.perf_counter() - started, time.process_time() - began)
    except UserError as error:
        return Answer(runner.worker_index, index, [], {}, mistake=str(error))
    except Exception:
        # RLlib would restart the runner and keep the reason to itself.
        return Answer(runner.worker_index, index, [], {}, failure=traceback.format_exc())


def hand_out(
    group: EnvRunnerGroup, runners: Sequence[int], weights: Any, plan: EpisodePlan, indices: Sequence[int], timeout_s: float
) -> Iterator[Answer]:
    """A group to each of `runners`, the next to whoever is done first; yields answers as they come.

    Groups whose runner died or said nothing for `timeout_s` have no answer; such a runner gets no more of them and is marked as dead,
    to be restored when Ray has restarted it.
    """
    actors, waiting, idle = group._worker_manager.actors(), list(indices), list(runners)
    running: dict[ray.ObjectRef, tuple[int, float]] = {}  # Call → runner, when it began.
    while running or (waiting and idle):
        while waiting and idle:
            runner = idle.pop(0)
            index = waiting.pop(0)
            name = f"episodes/{plan.iteration}/case{plan.case_index}/group{index}"
            call = actors[runner].apply.options(name=name).remote(partial(run_group, weights=weights, plan=plan, index=index))
            running[call] = runner, time.monotonic()
        eldest = min(began for _, began in running.values())
        ready, _ = ray.wait(list(running), timeout=max(0.0, eldest + timeout_s - time.monotonic()))
        late = [call for call, (_, began) in running.items() if call not in ready and time.monotonic() - began >= timeout_s]
        for call in (*ready, *late):
            runner, _ = running.pop(call)
            if call in late:  # It lives but hangs. Killed, it is started afresh like any other.
                ray.kill(actors[runner], no_restart=False)
                group._worker_manager.set_actor_state(runner, healthy=False)
                continue
            try:
                answer = ray.get(call)
            except RayError:
                group._worker_manager.set_actor_state(runner, healthy=False)
                continue
            idle.append(runner)
            yield answer
