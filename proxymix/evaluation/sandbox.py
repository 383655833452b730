"""Programs that a model wrote, run against the tests of their row: each in a process of its own, with bounds, and never in ours.

    answer → the program in it + tests + a word that only who reached the end can say
           → unshare → limits → python -I → a mark: it begins → passed or failed          no mark: nothing was run, so nothing is scored

Cut off: the network, other processes, the environment; bounded: time, memory, size of files, open files, processes (not for root, whom Linux lets
have as many as he likes until the time is up). Not cut off: files that the user who runs this can read. Whoever fears a hostile model gives the
evaluation a user or a container of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from proxymix.scoring_config import CodeConfig

ISOLATE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
"""No network, and whatever a program started dies with it."""
FILE_BYTES = 16 << 20
OPEN_FILES = 64
_LAUNCH = """
import os, resource, sys
seconds, memory, size, files = map(int, sys.argv[1:5])
mark, program, begin = sys.argv[5:]
for what, limit in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("NOFILE", files), ("NPROC", 0), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (limit, limit))
os.execv(sys.executable, [sys.executable, "-I", "-B", "-c", begin, mark, program])
"""
_BEGIN = """
import os, runpy, sys
mark = int(sys.argv[1])
os.write(mark, b"!")
os.close(mark)
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The mark goes through a pipe, which the program cannot take back: leaving itself unscored must not be in its power."""
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
    word = secrets.token_hex(16)  # A program that exits before its tests does not know it.
    with TemporaryDirectory() as folder:
        file, output = Path(folder) / "program.py", Path(folder) / "output"
        # A lone surrogate is no text; the program is then wrong, and so is what is written.
        file.write_text(f"{program_in(answer)}\n\n{tests}\n\nprint({word!r})\n", encoding="utf-8", errors="replace")
        limits = (int(settings.timeout_s) + 1, settings.memory_mib << 20, FILE_BYTES, OPEN_FILES)
        isolated = ISOLATE if isolation_works() else ()
        seen, mark = os.pipe()
        try:
            command = [*isolated, sys.executable, "-I", "-c", _LAUNCH, *map(str, limits), str(mark), str(file), _BEGIN]
            ended_well = _ended_well(command, output, settings.timeout_s, mark)
            return ended_well and output.read_bytes().rstrip().endswith(word.encode()) if _begun(seen) else None
        finally:
            os.close(seen)


def _begun(seen: int) -> bool:
    """Whether the mark was left; a process that outlived the program may still hold the other end."""
    os.set_blocking(seen, False)
    try:
        return os.read(seen, 1) != b""
    except BlockingIOError:
        return False


def _ended_well(command: list[str], output: Path, timeout_s: float, mark: int) -> bool:
    """Whether the command ended by itself and without a fault; closes our end of `mark`."""
    try:
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.DEVNULL,
                cwd=output.parent,
                env={"PATH": os.defpath},
                start_new_session=True,
                pass_fds=(mark,),
            )
    except OSError:  # No room for another process, say.
        return False
    finally:
        os.close(mark)
    try:
        return process.wait(timeout_s) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@cache
def isolation_works() -> bool:
    """Whether this machine lets us start a process without a network."""
    try:
        return subprocess.run([*ISOLATE, "true"], capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
