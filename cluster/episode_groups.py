"""An iteration's episodes in groups, each run side by side by one env runner, handed out as runners come free.

    plan → (weights, case, noise seeds of a group) → the next free env runner → episodes, by the group's place in the plan

What a group is depends on the configuration alone, never on how many runners there are; nor does who runs it, or when, change its episodes.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from proxymix.errors import UserError

SLACK = 10.0
"""A group may take this many times what its optimizer steps took before: runners share cores, and reading data costs the first one more."""
MIN_TIMEOUT_S = 120.0
"""However few its steps. A runner that died is noticed at once; timeouts are for one that hangs."""
UNTIMED_TIMEOUT_S = 3600.0
"""While there is nothing to go by: no reference runs, and no group has been finished."""


@dataclass(frozen=True)
class EpisodePlan:
    """One iteration's episodes."""

    iteration: int
    case_index: int
    noise_seeds: tuple[tuple[int, ...], ...]
    """One per episode; nothing else tells the episodes of an iteration apart."""
    num_steps: int
    """Optimizer steps of an episode: of the case."""
    group_size: int = 1
    """Episodes that are run side by side; divides their number."""
    reference_step_s: float | None = None
    """Seconds per optimizer step of the case's reference runs, one proxy at a time; None: there were none."""

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
    lost: bool = False
    """The runner died or hung: there are no episodes, and what it had done of them was for nothing."""
    begun: bool = True
    """Whether the runner had taken the group up; one that died idle had not."""
    failure: str | None = None
    """A traceback: a fault of the program, which running the episodes again would only repeat."""


def time_limit(plan: EpisodePlan, slowest_step_s: float) -> float:
    """Seconds that a group of the plan may take before its runner counts as hanging: in proportion to the case's optimizer steps.

    Args:
        plan: of the group.
        slowest_step_s: most seconds per optimizer step of any group so far. 0: none was timed; then reference runs say it, as if the
            proxies of the group were tuned one after the other, which takes longer than side by side.
    """
    step_s = slowest_step_s or plan.group_size * (plan.reference_step_s or 0.0)
    return max(MIN_TIMEOUT_S, SLACK * step_s * plan.num_steps) if step_s else UNTIMED_TIMEOUT_S


class ProxyRunner(SingleAgentEnvRunner):
    """RLlib's env runner, whose GPU is the proxies': the policy's few numbers stay on the CPU, and are the same wherever proxies are tuned."""

    def make_env(self) -> None:
        """The first that RLlib makes once it has chosen a device for the policy."""
        self._device = torch.device("cpu")
        super().make_env()


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


def _answer(runner: SingleAgentEnvRunner) -> None:
    """Nothing, of a runner that lives."""


def _is_answered(call: ray.ObjectRef) -> bool:
    with suppress(RayError):
        ray.get(call, timeout=MIN_TIMEOUT_S)
        return True
    return False


def hand_out(
    group: EnvRunnerGroup, runners: Sequence[int], weights: Any, plan: EpisodePlan, indices: Sequence[int], timeout_s: Callable[[], float]
) -> Iterator[Answer]:
    """A group to each of `runners`, the next to whoever is done first; yields answers as they come.

    A group whose runner died or said nothing for `timeout_s()` is answered as lost; such a runner gets no more of them and is marked as dead,
    to be restored when Ray has restarted it. Groups that no runner is left for have no answer. The limit is asked for again after every
    answer, which may have changed it.
    """
    actors, waiting, idle = group._worker_manager.actors(), list(indices), list(runners)
    running: dict[ray.ObjectRef, tuple[int, int, float]] = {}  # Call → runner, group, when it began.
    taken_up: dict[int, ray.ObjectRef] = {}  # Group → a call before it, which only a runner that lives answers.
    while running or (waiting and idle):
        while waiting and idle:
            runner = idle.pop(0)
            index = waiting.pop(0)
            name = f"episodes/{plan.iteration}/case{plan.case_index}/group{index}"
            taken_up[index] = actors[runner].apply.options(name=f"{name}/taken up").remote(_answer)
            call = actors[runner].apply.options(name=name).remote(partial(run_group, weights=weights, plan=plan, index=index))
            running[call] = runner, index, time.monotonic()
        eldest, limit_s = min(began for _, _, began in running.values()), timeout_s()
        ready, _ = ray.wait(list(running), timeout=max(0.0, eldest + limit_s - time.monotonic()))
        late = [call for call, (_, _, began) in running.items() if call not in ready and time.monotonic() - began >= limit_s]
        for call in (*ready, *late):
            runner, index, _ = running.pop(call)
            answer = Answer(runner, index, [], {}, lost=True)
            if call in late:  # It lives but hangs. Killed, it is started afresh like any other.
                ray.kill(actors[runner], no_restart=False)
            else:
                with suppress(RayError):
                    answer = ray.get(call)
            if answer.lost:
                answer = replace(answer, begun=_is_answered(taken_up[index]))
                group._worker_manager.set_actor_state(runner, healthy=False)
            else:
                idle.append(runner)
            yield answer
