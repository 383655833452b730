"""How every job starts and ends: config and overrides in, one clear message and an honest exit code out."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from jobs.run import Run
from proxymix.config import load_config
from proxymix.errors import UserError

Job = Callable[[Run], None]


def launch(job: Job, quick: Sequence[str] = ()) -> None:
    """Runs `job` from the command line.

    Exit codes: 0 done; 2 a mistake in the input or surroundings, told in one message; 130 interrupted; 1 a bug.

    Args:
        job: what to run.
        quick: overrides that `--quick` sets, beneath those of the command line; a job without any has no such option.
    """
    small_option = typer.Option(False, "--quick", help="Less of everything, in minutes.", hidden=not quick)

    def command(
        config: Annotated[Path, typer.Option("--config", help="YAML file of the run.")],
        overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, values are YAML.", show_default=False)] = None,
        small: bool = small_option,
    ) -> None:
        if small and not quick:
            raise typer.BadParameter("this job has no quick form")
        sys.exit(run_job(job, config, [*(quick if small else ()), *(overrides or [])]))

    command.__doc__ = (sys.modules[job.__module__].__doc__ or "").split("\n\n")[0]
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app()


def run_job(job: Job, config: Path, overrides: list[str]) -> int:
    """`job` on the configured run; returns the exit code."""
    _quiet_libraries()
    run = None
    try:
        run = Run.open(load_config(config, overrides), job.__module__.rpartition(".")[2] if job.__module__ != "__main__" else _main_name())
        job(run)
        status, code = "finished", 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status, code = "failed", 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        status, code = "interrupted", 130
    except BaseException:
        if run is not None and run.begun:
            run.set_status("failed")
        raise
    if run is not None and run.begun:
        run.set_status(status)
    return code


def _main_name() -> str:
    """Of the module that was started with `python -m`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.rpartition(".")[2] if spec else "job"


def _quiet_libraries() -> None:
    """Libraries' chatter must not drown the progress; errors still come through."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    for name in ("ray", "ray.serve", "ray.tune", "ray.train", "transformers", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
