"""A connection to Ray for the length of one job: an existing cluster, or one started here and gone afterwards.

ray_session(config) → ray.init → a place in the cluster → the job → ray.shutdown          (also after Ctrl-C, a failure or `ray job stop`)
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

import psutil
import ray
from ray._private import ray_constants

from cluster.admission import Needs, admitted
from cluster.head_watch import watched_head
from cluster.local import LOOPBACK, ONE_MACHINE, ensure_token
from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.planning.gpus import gpu_needs

GIB = 2**30
MIN_LOGICAL_CPUS = 8
"""Logical CPUs of a cluster started here when the machine has fewer cores: most actors wait most of the time."""
WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
    "PYTHONWARNINGS": "ignore",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Every worker: threads are set, not guessed, and libraries do not talk over the job."""


DRIVER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""The driver: Ray's core prints what only its developers can use."""


@contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Ray, connected. Under `ray job submit`, or with RAY_ADDRESS set, the running cluster; else one of our own.

    In a running cluster the job waits until all it needs is free there, at most `resources.queue_timeout_s`.

    Raises:
        UserError: too little memory, no cluster that answers, or one without a place for the job.
    """
    _check_memory(config)
    os.environ.update(DRIVER_ENVIRONMENT)
    joined = "RAY_ADDRESS" in os.environ
    if not joined and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
        ensure_token()
    own = {} if joined else _on_loopback() | {"address": "local", "num_cpus": _logical_cpus(config), "include_dashboard": True}
    environment = {"env_vars": {key: value for key, value in WORKER_ENVIRONMENT.items() if key not in _submitted_variables()}}
    try:
        ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **own)
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS: no Ray cluster answers at {os.environ.get('RAY_ADDRESS')!r} ({error}); start one or unset it") from error
    # ray.init replaces the handler; `ray job stop` and a scheduler's SIGTERM must unwind like Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        needs = _needs(config)
        if not joined:
            _check_own(needs)
        place = admitted(config.name, needs, config.resources.queue_timeout_s, _say) if joined else nullcontext()
        with watched_head(ray.get_runtime_context().gcs_address, _say), place:
            yield
    finally:
        ray.shutdown()


def dashboard_url() -> str | None:
    """Where the Ray dashboard of this session is, if it has one."""
    url = ray.get_runtime_context().gcs_address and ray._private.worker.get_dashboard_url()
    return f"http://{url}" if url else None


def this_cluster() -> dict[str, dict[str, str]]:
    """A `runtime_env` for tasks that start Ray Train.

    Train asks a dashboard whether its controller lives: that of the machine's newest cluster unless it is told which is ours, and where the
    controller is unknown it takes the workers' place away.
    """
    return {"env_vars": {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}}


def spare_cores(config: Config) -> int:
    """Cores that learning the controller leaves idle, of this machine's or, if they are fewer, of Ray's free CPUs; needs a connected Ray."""
    free = min(os.cpu_count() or 1, int(ray.available_resources().get("CPU", 0)))
    return free - max(1, config.started_env_runners)


def _logical_cpus(config: Config) -> int:
    return config.resources.logical_cpus or max(MIN_LOGICAL_CPUS, os.cpu_count() or 1)


def _on_loopback() -> dict[str, str]:
    """What a cluster of our own is started with, so that nobody else can reach a port of it."""
    os.environ[ONE_MACHINE] = "0"  # For its processes.
    ray_constants.ENABLE_RAY_CLUSTER = False  # For this one: Ray has read the variable when it was imported.
    return {"_node_ip_address": LOOPBACK, "dashboard_host": LOOPBACK}


def _check_memory(config: Config) -> None:
    free = psutil.virtual_memory().available / GIB
    if free < config.resources.memory_gib:
        raise UserError(
            f"resources.memory_gib: must be free to start, got {free:.1f} of {config.resources.memory_gib:g} GiB; close something or lower it"
        )


def _needs(config: Config) -> Needs:
    """Evaluation actors are there from the start; beside them the env runners, later Train's workers and the service.

    So GPUs are shared: those that the target's workers will have, the proxies have before. Pilots and reference runs, before them, are tasks
    that end: where more are asked for at a time than that leaves room for, they take turns.
    """
    if config.proxy.use_gpu and config.controller.num_env_runners == 0:
        raise UserError("controller.num_env_runners: must be at least 1 with proxy.gpus_per_runner, for Ray gives GPUs to its workers alone, got 0")
    actors, workers = config.evaluation.actors, config.target.parallelism.num_workers
    return Needs(actors + max(config.started_env_runners, workers + 1, 2) + 1, gpu_needs(config).total)


def _check_own(needs: Needs) -> None:
    """Nothing joins a cluster of our own, so waiting would not help."""
    have = int(ray.cluster_resources().get("CPU", 0))
    if have < needs.cpus:
        raise UserError(
            f"resources.logical_cpus: the job needs {needs.cpus} Ray CPUs (env runners, workers, evaluation actors, service), got {have}; "
            "raise it (it may exceed the cores)"
        )
    if (found := ray.cluster_resources().get("GPU", 0)) < needs.gpus:
        raise UserError(
            f"target.parallelism.use_gpu, proxy.gpus_per_runner: need {needs.gpus} GPUs (evaluation actors, and beside them workers or proxies), "
            f"got {found:g}; set them to false and 0, or add some"
        )


def _submitted_variables() -> set[str]:
    """Environment variables that the job was submitted with: they stand, and Ray refuses to be told a variable twice."""
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return set((submitted.get("runtime_env") or {}).get("env_vars") or {})


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
