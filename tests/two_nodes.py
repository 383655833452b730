"""A Ray cluster of two nodes on this machine, until its input ends: a program for tests, which may kill either node and keep their own Ray apart.

python two_nodes.py <folder> <store> → {"address", "head", "worker", "gcs"} as a line of JSON (process ids) → … → end of input → gone

A line on its input kills the GCS, the cluster's memory, and starts its successor under the living nodes; the answer is the successor's process id.
What it must remember is in a store that outlives it: `rocksdb`, which Ray embeds, beneath the folder, or a Redis at `redis://:<password>@<host>:<port>`.
"""

import json
import os
import sys
from urllib.parse import urlsplit

HEAD_CPUS, WORKER_CPUS = 6, 2
NOBODY = 9
"""The port of a dashboard that is not there, as in `own_ray.py`; not from there, for Ray reads its environment when it is imported."""


def main(folder: str, store: str) -> None:
    head_node = {"num_cpus": HEAD_CPUS, "include_dashboard": False, "dashboard_port": NOBODY, "temp_dir": folder}
    if store == "rocksdb":
        os.environ |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": f"{folder}/gcs"}
    else:
        redis = urlsplit(store)
        os.environ["RAY_REDIS_ADDRESS"] = f"redis://{redis.hostname}:{redis.port}"
        head_node["redis_password"] = redis.password
    from ray.cluster_utils import Cluster  # Ray reads its environment when it is imported.

    def pid(node, kind):
        return node.all_processes[kind][0].process.pid

    cluster = Cluster(initialize_head=True, head_node_args=head_node)
    head, worker = cluster.head_node, cluster.add_node(num_cpus=WORKER_CPUS)
    pids = {"head": pid(head, "raylet"), "worker": pid(worker, "raylet"), "gcs": pid(head, "gcs_server")}
    print(json.dumps({"address": cluster.address, **pids}), flush=True)
    for _ in sys.stdin:
        head.kill_gcs_server()
        head.start_gcs_server()
        print(pid(head, "gcs_server"), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
