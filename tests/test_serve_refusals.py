"""What Ray Serve's own proxy answers in front of the service: a full queue, and a replica that is killed with a request under way."""

import os
import signal
import socket
import time
import warnings
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from select import select

import httpx
import pytest
from fake_service import example, save
from own_ray import own_ray

from proxymix.service_config import ServiceConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    import ray
    from ray.serve.context import _get_global_client

    from services.app import MAX_IN_FLIGHT
    from services.deployment import deploy, undeploy
    from services.replica import MAX_QUEUED_REQUESTS

from test_serve import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
HALF_A_REQUEST = b"POST /v1/decisions HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
PATIENCE_S = 60.0
MORE = 8
"""Than there is room for."""


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controller")
    save(folder, 0.1)
    service = ServiceConfig(port=free_port())
    with own_ray(2):
        deploy(folder, service)
        yield service.port
        undeploy()


@pytest.fixture
def http(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as http:
        yield http


@contextmanager
def unfinished(port):
    """A request whose body never ends, so that it stays where it is."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(HALF_A_REQUEST)
        yield connection


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def num_under_way():
    """Requests that the one replica has taken."""
    (actor,) = [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in actor["name"]]
    return ray.get(ray.get_actor(**actor).get_num_ongoing_requests.remote())


def refused_for_want_of_room(port):
    """The answer to a request that came when as many were there as may be; None if those were given up before it came, on a busy machine."""
    with ExitStack() as held:
        waiting = [held.enter_context(unfinished(port)) for _ in range(MAX_IN_FLIGHT + MAX_QUEUED_REQUESTS + MORE)]
        while waiting:
            for connection in select(waiting, [], [], PATIENCE_S)[0]:
                waiting.remove(connection)
                answer = HTTPResponse(connection)
                answer.begin()
                if answer.status != 408:  # So long its body was waited for.
                    assert num_under_way() <= MAX_IN_FLIGHT
                    return answer
    return None


def test_a_full_queue_is_503_with_retry_after_until_there_is_room(port, http):
    refused = until(lambda: refused_for_want_of_room(port))
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.headers.get_content_type() == "text/plain"
    until(lambda: http.post("/v1/decisions", json=example()).status_code == 200)


def test_a_request_that_dies_with_its_replica_is_serves_500_and_the_next_one_waits_for_another(port, http):
    (app,) = _get_global_client().get_serve_details()["applications"].values()
    ((replica,),) = [deployment["replicas"] for deployment in app["deployments"].values()]
    with unfinished(port) as connection:
        until(lambda: num_under_way() == 1)
        os.kill(replica["pid"], signal.SIGKILL)
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 500
        assert answer.headers.get_content_type() == "text/plain"
        assert answer.read() == b"Internal Server Error"
    assert http.post("/v1/decisions", json=example()).status_code == 200
