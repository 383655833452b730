"""Takes down the service that a killed job left behind; `proxymix stop` runs it on the cluster, where alone Serve takes orders.

python -m jobs.take_down <app> [<run folder>]: with the folder it is refused while a job works on that run, whoever started it
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import ray

from jobs.run import ALONE, lock
from proxymix.errors import UserError
from services.deployment import undeploy


def take_down(app: str, folder: Path | None = None) -> None:
    """Takes down `app`, if no job works on the run in `folder`.

    Raises:
        UserError: one does.
    """
    if folder is not None and folder.exists() and not app.endswith(ALONE):
        lock(folder)
    ray.init(logging_level=logging.ERROR)
    undeploy(app)


if __name__ == "__main__":
    try:
        take_down(sys.argv[1], *map(Path, sys.argv[2:]))
    except UserError as error:
        sys.exit(f"error: {error}")
