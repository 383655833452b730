"""A Ray cluster of two nodes on this machine, until its input ends: a program for tests, which may kill either node and keep their own Ray apart.

python two_nodes.py <folder> → {"address", "head", "worker"} as a line of JSON (process ids of the raylets) → … → end of input → gone
"""

import json
import sys

from ray.cluster_utils import Cluster

HEAD_CPUS, WORKER_CPUS = 6, 2

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": HEAD_CPUS, "include_dashboard": False, "temp_dir": sys.argv[1]})
    worker = cluster.add_node(num_cpus=WORKER_CPUS)
    head_raylet, raylet = (node.all_processes["raylet"][0].process.pid for node in (cluster.head_node, worker))
    print(json.dumps({"address": cluster.address, "head": head_raylet, "worker": raylet}), flush=True)
    sys.stdin.read()
    cluster.shutdown()
