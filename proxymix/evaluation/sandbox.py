"""Programs that a model wrote, run against the tests of their row: each in a process of its own, with bounds, and never in ours.

    answer → the program in it + tests
       → unshare → its own root (`proxymix.evaluation.enclosure`) → limits → python -I → a mark: it begins → a word sent back: the tests are over
       no mark: nothing was run, so nothing is scored                     no word, or a fault: failed

Cut off: the network, other processes, the environment, every file but Python's and the system's libraries, which are read-only; bounded: time,
memory, size of files, open files, processes (not for root, whom Linux lets have as many as he likes until the time is up). Not cut off: the tests.
They run in the program's own interpreter, so one that sets out to can make them pass (by objects that equal everything, say): scores tell of
honest programs.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from proxymix.scoring_config import CodeConfig

ISOLATE = ("unshare", "--user", "--map-root-user", "--net", "--ipc", "--pid", "--mount", "--fork", "--kill-child")
"""No network, files of its own, and whatever a program started dies with it."""
ENCLOSURE = Path(__file__).with_name("enclosure.py")
FILE_BYTES = 16 << 20
OPEN_FILES = 64
_FENCED = re.compile(r"```[ \t]*(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_in(answer: str) -> str:
    r"""The code of an answer: what stands between fences, else all of it.

    >>> program_in("Here:\n```python\nx = 1\n```\nDone."), program_in("x = 2")
    ('x = 1\n', 'x = 2')
    """
    blocks = _FENCED.findall(answer)
    return "\n".join(blocks) if blocks else answer


def passes_tests(answer: str, tests: str, settings: CodeConfig) -> bool | None:
    """Whether the tests hold of the program in `answer`.

    Args:
        answer: of the model.
        tests: Python statements that raise where the program is wrong.
        settings: whether it may be run at all, and its bounds.

    Returns:
        None where it was not run: `settings.enabled` is false, or the machine gives no sandbox, or none in which Python starts within the bounds.
    """
    if not settings.enabled or not (settings.allow_network or isolation_works()):
        return None
    return _passes(f"{program_in(answer)}\n\n{tests}\n", settings, isolation_works())


@cache
def isolation_works() -> bool:
    """Whether this machine lets us start a process without a network and with files of its own; a busy one is asked again."""
    return any(_passes("", CodeConfig(), True) for _ in range(3))


def _passes(script: str, settings: CodeConfig, isolated: bool) -> bool | None:
    """Whether the script ends well; None where it did not begin."""
    word = secrets.token_hex(16).encode()  # A program that exits before its tests does not send it back.
    ours, its = socket.socketpair()
    with TemporaryDirectory() as folder, ours:
        with its:
            ours.sendall(word)
            program = Path(folder) / "program.py"
            # A lone surrogate is no text; the program is then wrong, and so is what is written.
            program.write_text(script, encoding="utf-8", errors="replace")
            limits = (int(settings.timeout_s) + 1, settings.memory_mib << 20, FILE_BYTES, OPEN_FILES)
            start = [
                sys.executable,
                "-I",
                "-S",
                "-B",
                str(ENCLOSURE),
                str(int(isolated)),
                *map(str, limits),
                str(its.fileno()),
                str(program),
                sys.prefix,
            ]
            ended_well = _ended_well([*ISOLATE, *start] if isolated else start, folder, settings.timeout_s, its.fileno())
        said = _said(ours)
    return ended_well and said == b"!" + word if said.startswith(b"!") else None


def _said(channel: socket.socket) -> bytes:
    """What came through; a process that outlived the program may still hold the other end."""
    channel.setblocking(False)
    try:
        return channel.recv(64)
    except OSError:
        return b""


def _ended_well(command: list[str], folder: str, timeout_s: float, channel: int) -> bool:
    """Whether the command ended by itself and without a fault."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath},
            start_new_session=True,
            pass_fds=(channel,),
        )
    except OSError:  # No room for another process, say.
        return False
    try:
        return process.wait(timeout_s) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
