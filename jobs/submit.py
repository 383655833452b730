"""A job made ready to be run on a cluster: checked here, every path made absolute, the variables it needs taken along.

job + config + overrides → Run.open (as the job itself would) → Submission
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.run import REVISION_VARIABLE, Run, git_revision
from proxymix.config import Config, load_config
from proxymix.errors import UserError

if TYPE_CHECKING:
    from cluster.submission import Submission


class Job(StrEnum):
    """What can be submitted: modules of `jobs`."""

    pipeline = "pipeline"
    pretrain_base = "pretrain_base"
    check_mirroring = "check_mirroring"
    train_controller = "train_controller"
    sweep_controller = "sweep_controller"
    calibrate_guard = "calibrate_guard"
    serve_controller = "serve_controller"
    tune_target = "tune_target"
    evaluate = "evaluate"
    benchmark = "benchmark"
    mirroring_study = "mirroring_study"
    ablate = "ablate"
    report = "report"


def prepare(job: Job, config_path: Path, overrides: Sequence[str], *, variables: Sequence[str] = (), quick: bool = False) -> Submission:
    """The submission of `job`; relative paths of the config are meant from here.

    Args:
        job: what to run.
        config_path: YAML file, here.
        overrides: `key.path=value`.
        variables: `NAME`, with its value here, or `NAME=value`: set for the job. The one named by `service.token_env` goes along by itself.
        quick: the job's small form.

    Raises:
        UserError: what the job itself would refuse in its config, or a variable that is not set.
    """
    config = load_config(config_path, list(overrides))
    run = Run.open(config, job)
    moved = _absolute(config.model_dump(mode="json"), run.config.model_dump(mode="json"))
    from cluster.submission import Submission  # Brings Ray, for which a mistake need not wait.

    names = [*variables, *([token] if (token := _token_variable(config)) else [])]
    environment = _values(names) | ({REVISION_VARIABLE: revision} if (revision := git_revision()) else {})
    arguments = [*(["--quick"] if quick else []), *overrides, *moved]
    return Submission(job.value, config.name, str(run.folder), run.app, config_path, arguments, environment)


def _token_variable(config: Config) -> str | None:
    """Named by the config and set here; where it is not, the cluster's own is meant."""
    name = config.service.token_env
    return name if name and os.environ.get(name) else None


def _absolute(given: Mapping[str, Any], absolute: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key.path=value` for every leaf that `absolute` has otherwise."""
    found = []
    for key, value in absolute.items():
        if isinstance(value, Mapping):
            found += _absolute(given[key], value, f"{prefix}{key}.")
        elif value != given[key]:
            found.append(f"{prefix}{key}={json.dumps(value)}")
    return found


def _values(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for entry in names:
        name, given, value = entry.partition("=")
        if not given and name not in os.environ:
            raise UserError(f"--env: {name!r} is not set here; export it or give {name}=value")
        found[name] = value if given else os.environ[name]
    return found
