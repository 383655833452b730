"""Ray's cluster launcher takes the cluster file."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
FILE = ROOT / "ray-cluster.yaml"


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
    (token,) = cluster["file_mounts"]
    assert cluster["docker"]["run_options"][-2:] == ["--env RAY_AUTH_MODE=token", f"--env RAY_AUTH_TOKEN_PATH={token}"]
    assert "--volume /shared:/shared" in cluster["docker"]["run_options"]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
