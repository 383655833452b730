"""Takes down the service that a killed job left behind; `proxymix stop` runs it on the cluster, where alone Serve takes orders."""

from __future__ import annotations

import logging
import sys

import ray

from services.deployment import undeploy

if __name__ == "__main__":
    ray.init(logging_level=logging.ERROR)
    undeploy(sys.argv[1])
