"""`proxymix`: jobs sent to a cluster, watched and stopped; and a cluster on this machine.

proxymix cluster start → proxymix submit pipeline --config demo.yaml → proxymix status | logs | stop → proxymix cluster stop
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.submit import Job, prepare
from proxymix.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

app = typer.Typer(help="Jobs on a Ray cluster.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
cluster = typer.Typer(help="A Ray cluster on this machine: loopback only, with a token.", no_args_is_help=True)
app.add_typer(cluster, name="cluster")
ADDRESS = "RAY_API_SERVER_ADDRESS"
Address = Annotated[str | None, typer.Option(help=f"Of the Ray dashboard, http(s)://…; else ${ADDRESS}, $RAY_ADDRESS, or the cluster started here.")]
Name = Annotated[str, typer.Argument(help="Id of a job, or name of a run: its last job.")]
Folder = Annotated[Path | None, typer.Option(help="Of the cluster's files; one for each cluster of this machine.", show_default=False)]


def main() -> None:
    """The console script. Exit codes: 0 done; 2 a mistake, told in one message; 130 interrupted or stopped; else the job's own."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Read when ray is imported, so nothing above imports it.
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def submit(
    job: Annotated[Job, typer.Argument(help="What to run.")],
    config: Annotated[Path, typer.Option("--config", help="YAML file of the run, here.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.path=value, values are YAML.", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The job's small form, if it has one.")] = False,
    env: Annotated[list[str] | None, typer.Option(help="NAME or NAME=value: a variable for the job.", show_default=False)] = None,
    wait: Annotated[bool, typer.Option(help="Show what it prints until it ends, and end as it does.")] = True,
    address: Address = None,
) -> None:
    """Run a job on the cluster. Interrupting this command leaves the job running."""
    prepared = prepare(job, config, overrides or [], variables=env or (), quick=quick)
    from cluster.submission import submit as send
    from cluster.submission import told

    with told():
        client = _client(address)
        job_id = send(client, prepared)
    print(f"job {job_id}  ·  dashboard {client.get_address()}", file=sys.stderr)
    if wait:
        sys.exit(_follow(client, job_id))


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Id of a job, or name of a run.", show_default=False)] = None, address: Address = None
) -> None:
    """Jobs of this cluster, whoever sent them, and how much of it is in use."""
    from cluster.submission import everyones, find, told, usage

    with told():
        client = _client(address)
        jobs = [find(client, name)] if name else everyones(client)
        used = usage(client)
    table = Table("job", "run folder or command", "status", "exit code", "minutes", box=None, pad_edge=False)
    for job in jobs:
        minutes = ((job.end_time or time.time() * 1000) - (job.start_time or 0)) / 60000
        code = "" if job.driver_exit_code is None else str(job.driver_exit_code)
        what = (job.metadata or {}).get("folder", job.entrypoint)
        table.add_row(job.submission_id or job.job_id, Text(what), job.status.value, code, f"{minutes:.1f}")
    out = Console(width=None if sys.stdout.isatty() else 200)
    out.print(table if jobs else "no jobs", highlight=False)
    out.print("  ".join(f"{kind} {part:g} of {whole:g} in use" for kind, (part, whole) in used.items()), highlight=False)


@app.command()
def logs(name: Name, follow: Annotated[bool, typer.Option(help="Until it ends, and end as it does.")] = False, address: Address = None) -> None:
    """What a job has printed."""
    from cluster.submission import find, told

    with told():
        client = _client(address)
        job = find(client, name)
        if not follow:
            return print(client.get_job_logs(job.submission_id), end="")
    sys.exit(_follow(client, job.submission_id))


@app.command()
def stop(name: Name, address: Address = None) -> None:
    """End a job as Ctrl-C would, and take down what it leaves; a job that has ended is cleaned up after all the same."""
    from cluster.submission import find, told
    from cluster.submission import stop as end

    with told():
        client = _client(address)
        job = find(client, name)
        end(client, job)
    print(f"stopped {job.submission_id}; the same command goes on from there", file=sys.stderr)


@cluster.command("start")
def start_cluster(
    num_cpus: Annotated[int, typer.Option(min=1, help="Logical CPUs; may exceed the cores.")] = max(8, os.cpu_count() or 1),
    num_gpus: Annotated[int | None, typer.Option(min=0, help="Else as many as there are.", show_default=False)] = None,
    dashboard_port: Annotated[int, typer.Option(min=1024, max=65535)] = 8265,
    folder: Folder = None,
) -> None:
    """Start a Ray head on this machine."""
    from cluster.local import default_folder, metrics_targets, start

    folder = folder or default_folder()
    found = start(folder, num_cpus=num_cpus, num_gpus=num_gpus, dashboard_port=dashboard_port)
    print(f"dashboard and jobs at {found.dashboard}")
    print(f"for Prometheus: file_sd_configs: [{{files: [{metrics_targets(folder)}]}}]")
    print(f"for Ray's own commands: export RAY_AUTH_MODE=token {ADDRESS}={found.dashboard}")


@cluster.command("status")
def show_cluster(folder: Folder = None) -> None:
    """Whether it runs, and how much of it is in use."""
    from cluster.local import default_folder, running

    if (found := running(folder or default_folder())) is None:
        raise UserError("cluster: none runs; `proxymix cluster start` starts one")
    print(f"dashboard and jobs at {found.dashboard}")
    status(address=found.dashboard)


@cluster.command("stop")
def stop_cluster(folder: Folder = None) -> None:
    """End it, with every job that is still on it."""
    from cluster.local import default_folder
    from cluster.local import stop as end

    print("stopped" if end(folder or default_folder()) else "none was running")


def _client(address: str | None) -> JobSubmissionClient:
    from cluster.local import default_folder, running
    from cluster.submission import Client

    for name in ("job.sdk", "dashboard_sdk"):
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)  # They tell of every connection.
    if address is not None:
        os.environ[ADDRESS] = address  # Ray would take what is there before what it is told.
    elif not (os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS")):
        if (found := running(default_folder())) is None:
            raise UserError(f"--address: which cluster? give its dashboard's address, set {ADDRESS}, or `proxymix cluster start` one here")
        os.environ[ADDRESS] = found.dashboard
    return Client()


def _follow(client: JobSubmissionClient, job_id: str) -> int:
    from cluster.submission import INTERRUPTED, follow, told

    def write(text: str) -> None:
        print(text, end="", flush=True)

    try:
        with told():
            return follow(client, job_id, write)
    except KeyboardInterrupt:
        print(f"\nthe job goes on: `proxymix logs --follow {job_id}` shows it, `proxymix stop {job_id}` ends it", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    main()
