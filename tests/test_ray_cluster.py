"""Ray's cluster launcher takes the cluster file, and Ray's autoscaler does as it says: in fake form, where a node is a raylet on this machine."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
import warnings
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from test_jobs import free_port
from test_tuning import marked, wait_until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

ROOT = Path(__file__).parents[1]
FILE = ROOT / "ray-cluster.yaml"
HEAD, CPU, GPU = (0, 0), (1, 0), (1, 1)
"""CPUs and GPUs of the file's nodes, scaled down: for every CPU Ray starts a process."""


def config():
    return yaml.safe_load(FILE.read_text())


def test_rays_launcher_takes_the_file():
    prepared = prepare_config(config())
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert {name: (node["min_workers"], node["max_workers"]) for name, node in types.items()} == {
        "ray.head.default": (0, 0),
        "cpu": (1, 8),
        "gpu": (0, 4),
    }
    assert sum(node["max_workers"] for node in types.values()) <= prepared["max_workers"]


def test_a_slip_in_the_file_is_seen():
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config(prepare_config(config() | {"idle_minutes": 3}))


def test_every_node_has_the_token_and_the_storage():
    cluster = config()
    token, of_the_service = cluster["file_mounts"]
    assert f"service.token_file={of_the_service}" in FILE.read_text()
    assert cluster["docker"]["run_options"][-2:] == ["--env RAY_AUTH_MODE=token", f"--env RAY_AUTH_TOKEN_PATH={token}"]
    assert "--volume /shared:/shared" in cluster["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def faked(cluster, address):
    """Without machines: node types, their limits and the autoscaler's rules are the file's, but for their size and an idle time of seconds."""
    types = {}
    for name, node in cluster["available_node_types"].items():
        resources = {key: min(number, 1) for key, number in node["resources"].items()}
        kept = {key: node[key] for key in node if key != "docker"}
        types[name] = {**kept, "node_config": {}, "resources": {**resources, "object_store_memory": 10**8}}
    # Ray's own name for the provider, `fake_multinode`, asks for a file that Ray's packages leave out.
    provider = {"type": "external", "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"}
    provider |= {"gcs_address": address, "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True}
    provider |= {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}
    nothing = {"auth": {}, "docker": {}, "file_mounts": {}, "initialization_commands": []}
    return {**cluster, **nothing, "provider": provider, "available_node_types": types, "idle_timeout_minutes": 0.1}


def head_command(cluster, folder, port):
    """The file's own command to start a head; of an option that is given twice, Ray takes the last."""
    options = shlex.split(cluster["head_start_ray_commands"][-1].partition("ray start ")[2])
    place = [f"--port={port}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", f"--autoscaling-config={folder}/fake.json"]
    place += [f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0"]
    light = ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *place, *light, "--block"]


def nodes():
    """CPUs and GPUs of each node that lives."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sorted((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in found)


def use(address):
    """What a driver on the cluster sees come and go; a process of its own, for this one may have another Ray."""
    ray.init(address, log_to_driver=False)
    wait_until(lambda: nodes() == [HEAD, CPU], 60)
    cpus = placement_group([{"CPU": 1}, {"CPU": 1}])
    wait_until(lambda: nodes() == [HEAD, CPU, CPU], 60)
    gpu = placement_group([{"CPU": 1, "GPU": 1}])
    wait_until(lambda: nodes() == [HEAD, CPU, CPU, GPU], 60)
    assert cpus.wait(60)
    assert gpu.wait(60)
    remove_placement_group(cpus)
    remove_placement_group(gpu)
    wait_until(lambda: nodes() == [HEAD, CPU], 60)


@pytest.mark.cluster
@pytest.mark.faults
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_nodes_of_the_file_come_when_they_are_needed_and_go_when_they_are_not():
    folder, port, mark = tempfile.mkdtemp(prefix="pmx", dir="/tmp"), free_port(), uuid.uuid4().hex  # Sockets need a short path.
    Path(folder, "fake.json").write_text(json.dumps(faked(prepare_config(config()), f"127.0.0.1:{port}")))
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "TEST_MARK": mark, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    # `ray up` chooses the second autoscaler, too; it knows the head by this name alone.
    fake = {"RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    environment, log = {**os.environ, **secret, **own}, Path(folder, "head.log")
    driver = [sys.executable, "-c", f"import test_ray_cluster; test_ray_cluster.use('127.0.0.1:{port}')"]
    with (
        log.open("w") as said,
        subprocess.Popen(head_command(config(), folder, port), env={**environment, **fake}, stdout=said, stderr=said) as head,
    ):
        try:
            wait_until(lambda: "Ray runtime started" in log.read_text(), 120, head)
            seen = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=240, check=False)
            assert seen.returncode == 0, seen.stderr + log.read_text()
        finally:
            for process in marked(mark):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)
