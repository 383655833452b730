"""The commands in the cluster files start runs whose service every node can reach. Ray's list of nodes is faked, nothing is started."""

import re
import shlex
import socket
import time
import warnings
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from proxymix.config import ServiceConfig
from proxymix.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve itself uses parts of pydantic that are deprecated.
    from services import deployment

ROOT = Path(__file__).parents[1]
SHA = "ab" * 32
FILES = ["ray-cluster.yaml", "cluster/kuberay/raycluster.yaml", "cluster/kuberay/rayjob.yaml"]


def node(address, *resources, alive=True):
    return {"NodeManagerAddress": address, "Alive": alive, "Resources": dict.fromkeys(resources, 1.0)}


@pytest.fixture
def two_addresses(monkeypatch):
    """A worker, the head, and a node that has gone."""
    nodes = [node("10.0.0.9", "CPU"), node("10.0.0.1", deployment.HEAD), node("10.0.0.7", "CPU", deployment.HEAD, alive=False)]
    monkeypatch.setattr(deployment.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(deployment, "_get_global_client", lambda **_: None)


@pytest.fixture
def port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(file):
    """The words of the one command in the file that starts a pipeline."""
    text = (ROOT / file).read_text().replace("\\\n#", "")
    (line,) = [line for line in text.splitlines() if re.search(r"proxymix submit pipeline|entrypoint: python -m jobs", line)]
    return shlex.split(line.lstrip("# "), comments=True)


def service(file, port):
    """As the command sets it."""
    given = dict(word.removeprefix("service.").split("=", 1) for word in command(file) if word.startswith("service."))
    return ServiceConfig(**given, port=port)


@pytest.mark.parametrize("file", FILES)
def test_the_service_of_the_command_is_within_every_nodes_reach(file, two_addresses, port):
    config = service(file, port)
    deployment.claim_port(config)
    assert deployment._reachable_host(config.host) == "10.0.0.1"
    assert config.is_guarded
    assert config.token_env in (None, "PROXYMIX_TOKEN")  # Pods have it in the variable; elsewhere it is a file on the nodes.


@pytest.mark.parametrize("file", FILES)
def test_the_command_writes_where_every_node_can_read(file):
    assert {"runs_root=/shared/runs", "cache_root=/shared/cache"} <= set(command(file))


def test_the_token_is_made_before_it_is_needed():
    text = (ROOT / "ray-cluster.yaml").read_text()  # On Kubernetes the pods have it (test_kuberay.py).
    assert 0 < text.index("openssl rand -hex 32 > ~/.ray/proxymix_token") < text.index("proxymix submit")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_refused_where_nodes_have_several_addresses(host, two_addresses, port):
    with pytest.raises(UserError, match=r"service\.host: must be reachable from all 2 addresses .* set it to 0\.0\.0\.0 and service\.token_env"):
        deployment.claim_port(ServiceConfig(host=host, port=port))


def test_loopback_is_enough_for_nodes_that_share_an_address(monkeypatch, two_addresses, port):
    monkeypatch.setattr(deployment.ray, "nodes", lambda: [node("10.0.0.1", deployment.HEAD), node("10.0.0.1", "CPU"), node("10.0.0.2", alive=False)])
    deployment.claim_port(ServiceConfig(port=port))
    assert deployment._reachable_host("127.0.0.1") == "127.0.0.1"


def listed(version, reload_error=None):
    return SimpleNamespace(controllers=[SimpleNamespace(name="mix", version=version, sha256=SHA)], reload_error=reload_error)


def wait_answering(monkeypatch, answers, seconds):
    monkeypatch.setattr(deployment, "_listed", lambda connection: answers.pop(0) if len(answers) > 1 else answers[0])
    entry = SimpleNamespace(name="mix", version="2", sha256=SHA)
    deployment._wait_answering("http://127.0.0.1:9", ServiceConfig(), [entry], time.monotonic() + seconds)


def test_what_a_replica_that_goes_says_of_an_update_before_does_not_stop_this_one(monkeypatch):
    wait_answering(monkeypatch, [listed("1", "an old slip"), listed("2")], 60)


def test_an_update_that_is_not_taken_is_told(monkeypatch):
    with pytest.raises(UserError, match="did not take over the controllers: cannot read"):
        wait_answering(monkeypatch, [listed("1", "cannot read")], 0)
