"""A Ray cluster on this machine alone: one head, on loopback, with a token; started and stopped for what it is and nothing else.

    start → `ray start --head --block` as a process of its own → cluster.json → stop ends what carries its mark

`ray stop` ends every Ray process of the machine, whosever it is; `stop` here ends those that `start` began.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import psutil

from proxymix.artifacts import read_json, write_json
from proxymix.errors import UserError

MARK = "PROXYMIX_CLUSTER"
"""Variable by which every process of a cluster is known, workers and drivers of jobs too."""
LOOPBACK = "127.0.0.1"
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""0: Ray may listen on loopback alone. Else it takes a loopback address for the machine's outward one wherever there is a route to the outside."""
GRACE_S = 45
"""A stopped job may clean up for so long before it is killed; Ray's own default is 3 s, too little for Serve."""
START_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 30.0
MAX_FOLDER_CHARACTERS = 36
"""Ray puts sockets beneath, and their paths may have 107 bytes."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that `start` began."""

    mark: str
    pid: int
    dashboard: str
    """http address of the dashboard, which is the job server's too."""


def default_folder() -> Path:
    """Where this user's cluster has its files, short enough for sockets."""
    return Path(tempfile.gettempdir()) / f"proxymix-{os.getuid()}"


def metrics_targets(folder: Path) -> Path:
    """Where the cluster in `folder` keeps the addresses of its nodes' metrics, as Prometheus reads them (`file_sd_configs`)."""
    return folder / "ray" / "prom_metrics_service_discovery.json"


def start(
    folder: Path, *, num_cpus: int, num_gpus: int | None = None, dashboard_port: int = 8265, environment: Mapping[str, str] | None = None
) -> LocalCluster:
    """Starts a head and returns once its job server answers.

    Args:
        folder: of its files; made for this user alone.
        num_cpus: logical CPUs; may exceed the cores, for most actors wait most of the time.
        num_gpus: None: as many as there are.
        dashboard_port: on loopback.
        environment: further variables of its processes.

    Raises:
        UserError: it runs already, the port is taken, the folder is another user's, or it does not come up.
    """
    if (found := running(folder)) is not None:
        raise UserError(f"cluster: one runs already at {found.dashboard}; use it, or `proxymix cluster stop` first")
    _check(folder, dashboard_port)
    cluster = LocalCluster(uuid4().hex, 0, f"http://{LOOPBACK}:{dashboard_port}")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={LOOPBACK}", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard_port}", f"--temp-dir={folder / 'ray'}"]
    command += ["--port=0", "--dashboard-agent-listen-port=0", f"--ray-client-server-port={_free_port()}", f"--num-cpus={num_cpus}"]
    command += [] if num_gpus is None else [f"--num-gpus={num_gpus}"]
    with (folder / "start.log").open("w") as log:
        process = subprocess.Popen(
            command, env=_environment(cluster.mark, environment or {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    cluster = LocalCluster(cluster.mark, process.pid, cluster.dashboard)
    write_json(folder / "cluster.json", asdict(cluster))
    try:
        _wait_answering(cluster, process, folder)
    except BaseException:
        stop(folder)
        raise
    return cluster


def running(folder: Path) -> LocalCluster | None:
    """The cluster with its files in `folder`, if it is there."""
    facts = read_json(folder / "cluster.json") if _is_ours(folder) else None
    if facts is None:
        return None
    cluster = LocalCluster(**facts)
    return cluster if _mark(cluster.pid) == cluster.mark else None


def stop(folder: Path, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Ends every process of the cluster in `folder`, drivers of jobs too; False if there was none. Its log files stay."""
    facts = read_json(folder / "cluster.json") if _is_ours(folder) else None
    if facts is None:
        return False
    cluster = LocalCluster(**facts)
    head = [process for process in processes(cluster.mark) if process.pid == cluster.pid]
    for signalled in (head, processes(cluster.mark)):  # The head first: it ends the others in order.
        for process in signalled:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(signalled, timeout_s / 2)
    while left := processes(cluster.mark):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, 1.0)
    (folder / "cluster.json").unlink()
    return bool(head)


def processes(mark: str) -> list[psutil.Process]:
    """That carry the mark and live."""
    return [process for process in psutil.process_iter() if _mark(process.pid) == mark]


def ensure_token() -> None:
    """A token for Ray's authentication: the one that is configured, else one in Ray's own place that only this user can read."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        with suppress(OSError):  # Somebody else's, or on a disk that is read-only: then it is theirs to close.
            path.chmod(0o600)  # Ray itself writes it for everybody to read.
    except OSError as error:
        raise UserError(f"Ray's token cannot be written to {str(path)!r} ({error}); set RAY_AUTH_TOKEN_PATH to a file that can be") from error


def _environment(mark: str, more: Mapping[str, str]) -> dict[str, str]:
    ensure_token()
    # A job's `python` is found by name; it must be the one that runs the cluster.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    inherited = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    own = {MARK: mark, "RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_S), ONE_MACHINE: "0"}
    # Below it Ray logs the variables that a job was sent with, a token's too.
    return {**inherited, "PATH": path, **own, "RAY_LOGGER_LEVEL": "warning", **more}


def _check(folder: Path, dashboard_port: int) -> None:
    if len(str(folder)) > MAX_FOLDER_CHARACTERS:
        raise UserError(
            f"--folder: must have at most {MAX_FOLDER_CHARACTERS} characters, for sockets lie beneath, got {str(folder)!r}; take a shorter one"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(folder):
        raise UserError(f"--folder: {str(folder)!r} belongs to another user or can be written by others; take another one")
    folder.chmod(0o700)  # It may have been there; Ray's logs beneath are for everybody to read.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, dashboard_port))
        except OSError as error:
            raise UserError(f"--dashboard-port: {LOOPBACK}:{dashboard_port} is taken by another program; give a free one") from error


def _is_ours(folder: Path) -> bool:
    """Nobody else can have put anything there: what it says is believed. What Ray makes beneath, it opens to everybody."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _mark(pid: int) -> str | None:
    try:
        process = psutil.Process(pid)
        return process.environ().get(MARK) if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _wait_answering(cluster: LocalCluster, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    port = int(cluster.dashboard.rpartition(":")[2])
    while True:
        with socket.socket() as probe:
            answers = probe.connect_ex((LOOPBACK, port)) == 0
        if answers and "Ray runtime started" in (log := (folder / "start.log").read_text()):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            log = (folder / "start.log").read_text().strip().splitlines()
            raise UserError(f"cluster: Ray did not start; its last words in {str(folder / 'start.log')!r}: {' '.join(log[-3:])}")
        time.sleep(0.2)
