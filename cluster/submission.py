"""Jobs sent to a running cluster through Ray's job API: submitted with their code, watched, ended and cleaned up after.

    config + overrides → checked here → code and config, packed → Ray's job server → `python -m jobs.<name>` on the head node → its exit code

What a job needs from here travels with it: the packages it is made of, its config, the variables it names. Nothing else does, neither data nor
secrets that happen to lie in the working directory; and every path is made absolute, for a folder that all nodes share.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import aiohttp
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.local import GRACE_S
from proxymix.config import config_tree
from proxymix.errors import UserError

PACKAGES = ("cluster", "jobs", "proxymix", "services")
CONFIG = "config.yaml"
POLL_S = 1.0
SILENCE_S = 300.0
"""A cluster that says nothing for so long is taken for gone."""
ANSWER_S = 60.0
"""For one answer, and for the next line of a log: a connection whose other end has vanished would be listened to for ever."""
DISCONNECTED = (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError, aiohttp.ClientError, RuntimeError)
"""RuntimeError: the job server answers, but not as it should; or its log breaks off."""
INTERRUPTED = 130


@dataclass(frozen=True)
class Submission:
    """A job to be run elsewhere."""

    job: str
    """Module of `jobs`."""
    name: str
    """Of the run."""
    folder: str
    """Of the run, on the cluster."""
    app: str
    """Serve application that the job may start."""
    config: Path
    arguments: Sequence[str] = ()
    """After `--config`."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def entrypoint(self) -> str:
        """The command on the head node."""
        return shlex.join(["python", "-m", f"jobs.{self.job}", "--config", CONFIG, *self.arguments])


class Client(JobSubmissionClient):
    """Ray's own, which waits for every answer as long as it takes; this one gives up."""

    def _do_request(self, *args: Any, **options: Any) -> requests.Response:
        return super()._do_request(*args, **{"timeout": ANSWER_S, **options})


@contextmanager
def told() -> Iterator[None]:
    """Turns what the job server or the way to it refuses into one message.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"the cluster refused the token ({str(error).splitlines()[0]}); set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own"
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise UserError(f"--address: no Ray cluster answers ({error}); start one (`proxymix cluster start`) or set RAY_API_SERVER_ADDRESS") from error
    except RuntimeError as error:
        raise UserError(f"the cluster refused: {error}") from error


def submit(client: JobSubmissionClient, submission: Submission) -> str:
    """Sends the job; returns its id once the cluster has it.

    Raises:
        UserError: the same run is being worked on there.
    """
    # A report only looks, and what serves beside a job has an application of its own.
    if submission.job != "report" and (other := _living(client, "app", submission.app)):
        raise UserError(f"name: job {other} works on run {submission.folder!r} now; `proxymix logs` or `proxymix stop` it, or take another name")
    with TemporaryDirectory() as folder:
        _pack(Path(folder), submission.config)
        return client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=f"{submission.name}-{submission.job}-{uuid4().hex[:6]}",
            runtime_env={"working_dir": folder, "env_vars": {**submission.environment, "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S)}},
            metadata={"run": submission.name, "folder": submission.folder, "app": submission.app},
        )


def everyones(client: JobSubmissionClient) -> list[JobDetails]:
    """All jobs of the cluster, whoever sent or started them, the oldest first."""
    return sorted(client.list_jobs(), key=lambda job: job.start_time or 0)


def ours(client: JobSubmissionClient) -> list[JobDetails]:
    """Jobs that `submit` sent, the oldest first."""
    return [job for job in everyones(client) if _is_ours(job)]


def find(client: JobSubmissionClient, name: str) -> JobDetails:
    """The job with id `name`, whoever sent it, or the last one that `submit` sent of the run with that name.

    Raises:
        UserError: there is none.
    """
    for found in ([job for job in everyones(client) if job.submission_id == name], [job for job in ours(client) if job.metadata["run"] == name]):
        if found:
            return found[-1]
    raise UserError(f"job: no job or run {name!r} on this cluster; `proxymix status` lists them")


def _is_ours(job: JobDetails) -> bool:
    return bool(job.submission_id) and {"run", "folder", "app"} <= set(job.metadata or {})


def _living(client: JobSubmissionClient, key: str, value: str) -> str | None:
    """Id of a job that `submit` sent with that in its metadata and that has not ended."""
    return next((job.submission_id for job in ours(client) if job.metadata[key] == value and not job.status.is_terminal()), None)


def follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], Any], silence_s: float = SILENCE_S) -> int:
    """Hands on what the job prints until it ends, however often the connection breaks; returns its exit code.

    Raises:
        UserError: nothing has answered for `silence_s` seconds. The job may go on.
    """
    log, answered = _Log(write), time.monotonic()
    while True:
        with suppress(*DISCONNECTED):
            asyncio.run(log.tail(client, job_id))
        try:
            job = client.get_job_info(job_id)
            if job.status.is_terminal():
                log.add(0, client.get_job_logs(job_id))
                return exit_code(job)
            answered = time.monotonic()
        except DISCONNECTED as error:
            if time.monotonic() - answered > silence_s:
                raise UserError(
                    f"job {job_id}: the cluster has not answered for {silence_s:.0f} s ({error}); the job may go on, ask again later"
                ) from error
        time.sleep(POLL_S)


class _Log:
    """What a job prints, handed on once, however often it is sent."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write, self.seen = write, 0

    async def tail(self, client: JobSubmissionClient, job_id: str) -> None:
        """Until the log ends, the connection breaks, or nothing comes for `ANSWER_S` seconds; the next call begins it anew."""
        start, pieces = 0, aiter(client.tail_job_logs(job_id))
        with suppress(StopAsyncIteration):
            while True:
                start = self.add(start, await asyncio.wait_for(anext(pieces), ANSWER_S))

    def add(self, start: int, piece: str) -> int:
        """`piece` begins at character `start`; returns where it ends."""
        end = start + len(piece)
        if end > self.seen:
            self.write(piece[self.seen - start :])
            self.seen = end
        return end


def exit_code(job: JobDetails) -> int:
    """Of an ended job: its driver's own; 130 if it was stopped, 1 if it never began."""
    if job.status == JobStatus.STOPPED:
        return INTERRUPTED
    if job.driver_exit_code is None:
        return 0 if job.status == JobStatus.SUCCEEDED else 1
    return job.driver_exit_code if job.driver_exit_code >= 0 else 128 - job.driver_exit_code


def stop(client: JobSubmissionClient, job: JobDetails, timeout_s: float = GRACE_S + 15.0) -> None:
    """Ends the job as Ctrl-C would and takes down what it may have left: actors and placement groups go with it, its service does not.

    Raises:
        UserError: it did not end in `timeout_s` seconds, or has ended and another job works on its run.
    """
    job_id, app = job.submission_id, job.metadata["app"] if _is_ours(job) else None
    if not job.status.is_terminal():
        client.stop_job(job_id)
        _wait(client, job_id, timeout_s)
    if app is None or app not in applications(client):
        return
    if other := _living(client, "app", app):
        raise UserError(f"job {job_id}: it has ended, and the service is that of job {other}, which works on the same run now; stop that one")
    # Only a killed driver leaves its service behind. Serve takes orders from inside the cluster alone, so a small job gives them.
    with TemporaryDirectory() as folder:
        _pack(Path(folder))
        command = shlex.join(["python", "-m", "jobs.take_down", app, job.metadata["folder"]])
        cleaner = client.submit_job(entrypoint=command, runtime_env={"working_dir": folder})
        _wait(client, cleaner, timeout_s)
    if client.get_job_status(cleaner) != JobStatus.SUCCEEDED:
        raise UserError(f"job {job_id}: its service {app!r} could not be taken down: {client.get_job_logs(cleaner).strip()[-500:]}")


def applications(client: JobSubmissionClient) -> set[str]:
    """Names of the Serve applications on the cluster."""
    return set(_ask(client, "/api/serve/applications/").get("applications", {}))


def usage(client: JobSubmissionClient) -> dict[str, tuple[float, float]]:
    """Logical resources of the cluster: (used, in all) of `CPU` and, where there are some, `GPU`."""
    status = _ask(client, "/api/cluster_status")["data"]["clusterStatus"] or {}
    found = status.get("loadMetricsReport", {}).get("usage", {})
    return {name: (found[name][0], found[name][1]) for name in ("CPU", "GPU") if name in found}


def _ask(client: JobSubmissionClient, path: str) -> dict[str, Any]:
    answer = client._do_request("GET", path)
    answer.raise_for_status()
    return dict(answer.json())


def _wait(client: JobSubmissionClient, job_id: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not client.get_job_status(job_id).is_terminal():
        if time.monotonic() > deadline:
            raise UserError(f"job {job_id}: still there after {timeout_s:.0f} s; see `proxymix logs {job_id}`")
        time.sleep(POLL_S)


def _pack(folder: Path, config: Path | None = None) -> None:
    """What a job is made of, and nothing else."""
    root = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    if config is not None:
        (folder / CONFIG).write_text(yaml.safe_dump(config_tree(config), sort_keys=False), encoding="utf-8")  # It may extend others.
