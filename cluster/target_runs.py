"""The target's runs, tuned in a process beside the job, so that they can begin before there is a controller.

    begin → `tune_targets` in a Ray task: runs that ask no controller … then those that do, once `steer` has said whom     finish → all are over

Starting Ray Train costs many seconds, in which little is computed, and rules need nothing of what the controller still learns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.session import spare_cores, this_cluster
from cluster.tasks import task_result
from cluster.tuning import Assignment, tune_targets
from proxymix.artifacts import target_folder
from proxymix.config import PROXYMIX, Config
from proxymix.controllers.baselines import baseline
from proxymix.errors import UserError
from proxymix.journal import is_finished
from proxymix.types import Controller

GRACE_S = 20.0
"""For Ray Train to end by itself, before it is killed."""
Choose = Callable[[int, str | None], Controller]
"""The controller of the run with this seed, which may have begun with the controller of this hash."""
_numbers = count()
"""Of this driver's runs of the target: a name is free again only some time after its actor is gone."""


class Awaited:
    """An actor that holds a value which is not there yet."""

    def __init__(self) -> None:
        """Holds nothing."""
        self._there, self._value = asyncio.Event(), None

    async def set(self, value: Any) -> None:
        """Now it is there."""
        self._value = value
        self._there.set()

    async def get(self) -> Any:
        """The value, once it is there."""
        await self._there.wait()
        return self._value


@dataclass(frozen=True)
class Steering:
    """What decides the mixtures of a run: a rule at once, whoever answers for ProxyMix when it is known. Goes to Train's workers."""

    awaited: ActorHandle

    def ready(self, method: str) -> None:
        """Returns when runs of `method` can be tuned. For every worker to ask: none should wait for another in the middle of a run."""
        if method == PROXYMIX:
            ray.get(self.awaited.get.options(name="await/controller").remote())

    def __call__(self, method: str, seed: int, sha256: str | None) -> Controller:
        """The controller of one run, which may have begun with that of `sha256`."""
        if method != PROXYMIX:
            return baseline(method)
        choose: Choose = ray.get(self.awaited.get.options(name="await/controller").remote())
        return choose(seed, sha256)


class TargetRuns:
    """All target runs of a job; a context, at whose end nothing is tuned any more."""

    def __init__(self, config: Config, base_folder: str, run_dir: str, assignments: Sequence[Assignment]) -> None:
        """Nothing starts yet; needs a connected Ray.

        Args:
            config: of the run.
            base_folder: the untuned target, readable by every worker.
            run_dir: `runs/<name>`, shared by all nodes.
            assignments: (method, seed) pairs; those that ask no controller are tuned first.
        """
        self.config, self.base_folder, self.run_dir = config, base_folder, run_dir
        self.assignments = sorted(assignments, key=lambda pair: pair[0] == PROXYMIX)
        self._task: ray.ObjectRef | None = None
        self._awaited: ActorHandle | None = None
        self._began = 0.0

    def __enter__(self) -> TargetRuns:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Unless all are over: the process goes, and Train's workers with it. Once, however often it is left."""
        task, self._task = self._task, None
        awaited, self._awaited = self._awaited, None
        with suppress(RayError):  # The cluster may be gone, which is one way out of here.
            if task is not None:
                ray.cancel(task)  # Train's own handler then ends its workers, and gives their place back.
                if not ray.wait([task], timeout=GRACE_S)[0]:
                    ray.cancel(task, force=True)
            if awaited is not None:
                ray.kill(awaited)

    @property
    def _unfinished(self) -> list[Assignment]:
        return [pair for pair in self.assignments if not is_finished(target_folder(self.run_dir, *pair))]

    @property
    def has_room(self) -> bool:
        """Whether some could be tuned while a controller is learnt: runs that ask for none, on cores (and GPUs) that nothing else needs then."""
        if self.config.proxy.use_gpu or all(method == PROXYMIX for method, _ in self._unfinished):
            return False  # The proxies are on the GPUs that the target will have, or there is nothing to do yet.
        parallelism = self.config.target.parallelism
        beside = parallelism.num_workers * parallelism.threads_per_worker + self.config.evaluation.actors + 1  # Ray Serve.
        gpus = parallelism.num_workers * parallelism.use_gpu
        return spare_cores(self.config) >= beside and ray.available_resources().get("GPU", 0) >= gpus

    def begin(self) -> None:
        """Starts Ray Train, and tunes what can be; once, whoever asks again, and only if something is left to tune."""
        if self._task is not None or not self._unfinished:
            return
        name = f"{self.config.name}/{next(_numbers)}"
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._awaited = ray.remote(Awaited).options(name=f"controller of {name}", num_cpus=0, scheduling_strategy=here).remote()
        steering, place = Steering(self._awaited), (self.base_folder, self.run_dir)
        self._task = _tune.options(name=f"tune/{name}", scheduling_strategy=here, runtime_env=this_cluster()).remote(
            self.config, self.assignments, *place, steering
        )
        self._began = time.perf_counter()

    def steer(self, choose: Choose) -> float:
        """Runs of ProxyMix may begin. Returns the seconds since Ray Train began to start, 0 if nothing is left to tune.

        Args:
            choose: builds the controller of a run; pickled, called where the run is tuned.
        """
        self.begin()
        if self._awaited is None:
            return 0.0
        ray.get(self._awaited.set.options(name="set/controller").remote(choose))
        return time.perf_counter() - self._began

    def wait(self, timeout_s: float) -> bool:
        """Whether all are over, at the latest after `timeout_s`.

        Raises:
            UserError: what `tune_targets` raises; or its process died.
        """
        if self._task is None:
            return True
        if not ray.wait([self._task], timeout=timeout_s)[0]:
            return False
        task, self._task = self._task, None
        try:
            task_result(task)
        except WorkerCrashedError as error:
            raise UserError(
                "tune_target: the process that starts Ray Train died (out of memory?); every finished stage is kept, run the same command again"
            ) from error
        return True


@ray.remote(num_cpus=0, max_retries=0)
def _tune(config: Config, assignments: Sequence[Assignment], base_folder: str, run_dir: str, steering: Steering) -> None:
    place = {"base_folder": base_folder, "run_dir": run_dir}
    tune_targets(config, assignments, controller_for=steering, ready=steering.ready, name=f"{config.name}-target", **place)
