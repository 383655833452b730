"""A word when the cluster's head is gone: Ray waits a minute for it, then ends the process at once, and says nothing that a user could read.

watched_head(address, tell) → a thread that tries the address now and then → tell(message), once per silence
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PERIOD_S = 3.0
PATIENCE_S = 20.0
"""Of silence before it is told: well under Ray's minute, and longer than a head takes that is started again."""


@contextmanager
def watched_head(address: str, tell: Callable[[str], None], *, period_s: float = PERIOD_S, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Within, `tell` hears of a head that has been silent for `patience_s` seconds.

    Args:
        address: `host:port` of the GCS.
        tell: shows one line to the user.
        period_s: between two tries.
        patience_s: how long a silence may be.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(address, tell, period_s, patience_s, ended), daemon=True, name="head-watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(address: str, tell: Callable[[str], None], period_s: float, patience_s: float, ended: threading.Event) -> None:
    heard, told = time.monotonic(), False
    while not ended.wait(period_s):
        if _answers(address, period_s):
            heard, told = time.monotonic(), False
        elif not told and time.monotonic() - heard >= patience_s:
            told = True
            tell(
                f"the head of the Ray cluster, {address}, has not answered for {patience_s:g} s; unless it comes back the job ends within a minute, "
                "and the same command on another cluster goes on from the run folder"
            )


def _answers(address: str, timeout_s: float) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s):
            return True
    except OSError:
        return False
