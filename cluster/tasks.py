"""Ray tasks, a few at a time: as many as there are cores for, in worker processes that are used again; and tasks whose results are kept.

Logical CPUs may outnumber the cores, and every fresh worker process pays seconds of imports; so what may run at once is said here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayTaskError

from proxymix.artifacts import read_json, write_json
from proxymix.cases import CaseBuilder
from proxymix.config import Config
from proxymix.errors import UserError

T = TypeVar("T")

POLL_S = 0.5
STALL_TIMEOUT_S = 24 * 3600.0
"""A pilot of a large target takes hours, and nothing is told of it before its end."""


@lru_cache(maxsize=2)
def kept_builder(make: Callable[[Config, str], CaseBuilder], config_json: str, folder: str) -> CaseBuilder:
    """`make(config, folder)`, kept for the life of the worker process: model, tokenizer and data are loaded once for many cases."""
    torch.set_num_threads(1)
    return make(Config.model_validate_json(config_json), folder)


@cache
def on_gpus(task: Any, gpus: float) -> Any:
    """`task`, a remote function, with `gpus` GPUs to itself.

    Its worker process then ends with it, as Ray has it for functions that are *declared* to need a GPU: CUDA keeps to the card that a process
    began with, whichever Ray gives its next task.
    """
    return ray.remote(**task._default_options, num_gpus=gpus)(task._function) if gpus else task


def run_tasks(
    submissions: Sequence[Callable[[], ray.ObjectRef]],
    at_once: int,
    progress: Callable[[int, int], None],
    done: Callable[[int, T], None] | None = None,
) -> list[T]:
    """Results of all submissions, in their order.

    Args:
        submissions: each submits one task.
        at_once: tasks that may run side by side.
        progress: called with (done, total), now and then.
        done: called with each result's index and value as it comes.

    Raises:
        UserError: a task's, as it was raised there; or no task ended for `STALL_TIMEOUT_S`.
        RayError: any other failure; Ray has retried lost workers by then.
    """
    results: dict[int, T] = {}
    running: dict[ray.ObjectRef, int] = {}
    waiting = list(range(len(submissions)))
    last_end = time.monotonic()
    while waiting or running:
        if time.monotonic() - last_end > STALL_TIMEOUT_S:
            raise UserError(
                f"resources: no task ended for {STALL_TIMEOUT_S:.0f} s, {len(running)} wait or run; is the cluster full? see the Ray dashboard"
            )
        while waiting and len(running) < at_once:
            index = waiting.pop(0)
            running[submissions[index]()] = index
        for reference in ray.wait(list(running), timeout=POLL_S)[0]:
            index, last_end = running.pop(reference), time.monotonic()
            results[index] = task_result(reference)
            if done is not None:
                done(index, results[index])
        progress(len(results), len(submissions))
    return [results[index] for index in range(len(submissions))]


def run_cached_tasks(
    folder: Path,
    keys: Sequence[str],
    submissions: Sequence[Callable[[], ray.ObjectRef]],
    at_once: int,
    progress: Callable[[int, int], None],
    done: Callable[[int, Any, bool], None],
) -> list[Any]:
    """`run_tasks`, but what `folder` holds is not computed again, and what is computed goes there.

    Two runs that need the same result at once may both compute it; the entry is whole in either case.

    Args:
        folder: one JSON file a result.
        keys: names of the results: all that decides them, hashed.
        submissions: each submits one task, whose result is a JSON value.
        at_once: tasks that may run side by side.
        progress: called with (done, total).
        done: called with each result's index, its value, and whether it was there already; before it is kept.
    """
    results = {index: value for index, key in enumerate(keys) if (value := _entry(folder / f"{key}.json")) is not None}
    for index, value in results.items():
        done(index, value, True)
    missing, num_known = [index for index in range(len(keys)) if index not in results], len(results)

    def keep(place: int, value: Any) -> None:
        index = missing[place]
        results[index] = value
        done(index, value, False)
        write_json(folder / f"{keys[index]}.json", value)

    progress(num_known, len(keys))
    run_tasks([submissions[index] for index in missing], at_once, lambda number, _: progress(num_known + number, len(keys)), keep)
    return [results[index] for index in range(len(keys))]


def _entry(path: Path) -> Any:
    """What is kept in `path`; None if nothing is, or nothing that can be read."""
    try:
        return read_json(path)
    except ValueError:
        return None


def task_result(reference: ray.ObjectRef) -> Any:
    """Of a task that is over; a user's mistake that it found is raised as such."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None  # The message alone, without the worker's traceback.
        raise
