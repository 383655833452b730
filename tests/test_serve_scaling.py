"""Replicas on real Ray Serve come with the traffic, up to `service.max_replicas`, and go with it."""

import time
import warnings
from contextlib import ExitStack

import pytest
from fake_service import save
from own_ray import own_ray

from proxymix.service_config import ServiceConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    import ray

    from services import deployment, replica

from test_serve import free_port
from test_serve_refusals import unfinished

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
HASTE = {"upscale_delay_s": 1, "downscale_delay_s": 1, "look_back_period_s": 11}
"""In place of half a minute, ten minutes and half a minute; Serve measures every ten seconds."""
NUM_SLOW = 12
"""Requests at once: three times what one replica should have under way."""


@pytest.fixture
def cluster():
    with own_ray(2):
        yield


def become(number, seconds):
    """Whether there are so many replicas within so long."""
    deadline = time.monotonic() + seconds
    while sum("SERVE_REPLICA" in actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)) != number:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_a_second_replica_comes_under_slow_traffic_and_goes_after_it(cluster, tmp_path, monkeypatch):
    def hasty(*, autoscaling_config, **options):
        return replica.controller_deployment(autoscaling_config=autoscaling_config | HASTE, **options)

    monkeypatch.setattr(deployment, "controller_deployment", hasty)
    save(tmp_path, 0.1)
    service = ServiceConfig(port=free_port(), num_replicas=1, max_replicas=2)
    deployment.deploy(tmp_path, service)
    try:
        assert become(1, 0)
        for _ in range(10):
            with ExitStack() as held:  # The service gives each of them up after 15 s; then come others.
                for _ in range(NUM_SLOW):
                    held.enter_context(unfinished(service.port))
                if become(2, 12):
                    break
        assert become(2, 0)
        assert become(1, 180)
    finally:
        deployment.undeploy()
