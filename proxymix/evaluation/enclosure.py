"""What a process is before it is a model's program; run as a script, by path, under `unshare` (`proxymix.evaluation.sandbox`).

    new root: nothing in it but Python and the system's libraries, read-only → no capabilities → limits → python -I → begin → the program

A process that has a root of its own without /proc sees no other process, no socket and no file of the machine, whoever runs it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

SHOWN = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
FOLDER_BYTES = 64 << 20
"""What a program may write, all files together; it is memory."""
BEGIN = """
import os, runpy, sys
channel = int(sys.argv[1])
os.write(channel, b"!")
sys.argv[:] = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
os.write(channel, os.read(channel, 64))
"""
"""What was sent cannot be taken back: leaving itself unscored must not be in a program's power. The word to send back is in no file."""

_NO_SUID, _NO_DEVICES, _READ_ONLY = 2, 4, 1
_BIND, _RECURSIVE = 4096, 16384
_MOUNT_SETATTR, _HERE, _AND_BELOW = 442, -100, 0x8000  # The same number on every architecture; Linux 5.12.
_DROP, _NO_NEW_PRIVILEGES = 24, 38


def enclose(program: Path, prefix: str) -> None:
    """Leaves the machine's files behind; the program, and a folder to write in, stand where they stood.

    Args:
        program: the only file in its folder.
        prefix: of the Python that runs it, which may be a virtual environment.

    Raises:
        OSError: the machine does not let us.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def done(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
        done(libc.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), options.encode()), target)

    text, folder = program.read_bytes(), str(program.parent)
    mount("tmpfs", folder, "tmpfs", _NO_SUID | _NO_DEVICES, "size=1m")
    os.makedirs(folder + folder)
    for path in (*_shown(prefix), *DEVICES):
        place = Path(folder + path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(exist_ok=True) if os.path.isdir(path) else place.touch()
        if path not in DEVICES:
            mount(path, str(place), None, _BIND | _RECURSIVE)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SUID | _NO_DEVICES)
    done(libc.syscall(_MOUNT_SETATTR, _HERE, folder.encode(), _AND_BELOW, attributes, ctypes.c_size_t(32)), "mount_setattr")
    for path in DEVICES:
        mount(path, folder + path, None, _BIND)
    mount("tmpfs", folder + folder, "tmpfs", _NO_SUID | _NO_DEVICES, f"size={FOLDER_BYTES}")
    Path(folder + str(program)).write_bytes(text)
    os.chroot(folder)
    os.chdir(folder)
    for capability in range(64):  # Else what is read-only could be made writable again. Those that this Linux does not have fail.
        libc.prctl(_DROP, capability, 0, 0, 0)
    done(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")


def _shown(prefix: str) -> list[str]:
    """The system's and Python's own files that are there, none inside another."""
    python = (prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1]))
    paths = sorted({os.path.abspath(path) for path in (*SHOWN, *python) if os.path.exists(path)})
    return [path for path in paths if not any(path.startswith(f"{other}/") for other in paths)]


def main() -> None:
    """Arguments: enclose or not; CPU seconds, bytes of memory, bytes of a file, open files; the channel; the program; its Python's prefix."""
    enclosed, seconds, memory, size, files, channel = map(int, sys.argv[1:7])
    program = Path(sys.argv[7])
    if enclosed:
        enclose(program, sys.argv[8])
    for what, limit in (("CPU", seconds), ("AS", memory), ("FSIZE", size), ("NOFILE", files), ("NPROC", 0), ("CORE", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (limit, limit))
    os.execv(sys.executable, [sys.executable, "-I", "-B", "-c", BEGIN, str(channel), str(program)])


if __name__ == "__main__":
    main()
