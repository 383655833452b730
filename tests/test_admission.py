"""A run begins in a cluster that others use when all it needs is free, and says what it waits for."""

import threading
import time
import warnings

import pytest
from own_ray import own_ray

from proxymix.errors import UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray itself uses what is deprecated.
    import ray

    from cluster import admission
    from cluster.admission import Needs, admitted

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def cluster():
    with own_ray(8):
        yield


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(admission, "POLL_S", 0.05)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_run_keeps_takes_nothing_and_is_told_to_the_next(cluster):
    said = []
    with admitted("first", Needs(5), 0, said.append):
        assert ray.available_resources()["CPU"] == 8
        refused = pytest.raises(
            UserError, match=r"resources.queue_timeout_s: the run needs 4 CPUs; free are 3 of 8 CPUs \(run 'first' keeps 5 CPUs\)"
        )
        with refused, admitted("second", Needs(4), 0.1, said.append):
            pytest.fail("there was no place")
        with admitted("third", Needs(3), 0, said.append):
            pass
    assert said == ["waiting for a place in the cluster: the run needs 4 CPUs; free are 3 of 8 CPUs (run 'first' keeps 5 CPUs)"]


def test_a_waiting_run_begins_when_another_ends(cluster):
    said, begun, release = [], threading.Event(), threading.Event()

    def second():
        with admitted("second", Needs(6), 60, said.append):
            begun.set()
            release.wait(60)

    thread = threading.Thread(target=second)
    with admitted("first", Needs(5), 0, said.append):
        thread.start()
        wait_until(lambda: said)
        assert not begun.is_set()
    assert begun.wait(60)
    release.set()
    thread.join()
    assert [line.split(":")[0].rstrip("0123456789 s") for line in said] == ["waiting for a place in the cluster", "a place in the cluster after"]
    with admitted("third", Needs(8), 0, said.append):
        pass


def test_what_others_use_is_not_free(cluster):
    @ray.remote(num_cpus=6)
    class Guest:
        def ready(self):
            return True

    guest = Guest.remote()
    assert ray.get(guest.ready.remote())
    wait_until(lambda: ray.available_resources().get("CPU") == 2)
    with pytest.raises(UserError, match="free are 2 of 8 CPUs after 0 s"), admitted("run", Needs(3), 0, print):
        pytest.fail("there was no place")
    ray.kill(guest)
    with admitted("run", Needs(8), 60, print):
        pass


@pytest.mark.parametrize(
    ("needs", "shortage"), [(Needs(9), "9 CPUs; free are 8 of 8 CPUs"), (Needs(2, 1), "2 CPUs and 1 GPUs; free are 8 of 8 CPUs and 0 of 0 GPUs")]
)
def test_what_the_whole_cluster_does_not_have_is_not_waited_for(cluster, needs, shortage):
    said = []
    with pytest.raises(UserError, match=f"the run needs {shortage}, and no other run's end"), admitted("run", needs, 10**6, said.append):
        pytest.fail("there was no place")
    assert said == []


def test_an_autoscaler_is_waited_for(cluster, monkeypatch):
    said, nodes = [], ray.nodes()
    monkeypatch.setattr(ray, "nodes", lambda: [node | {"Labels": {admission.NODE_GROUP: "cpu"}} for node in nodes])
    with pytest.raises(UserError, match=r"resources.queue_timeout_s: .* after 0.1 s"), admitted("run", Needs(9), 0.1, said.append):
        pytest.fail("there was no place")
    assert said == ["waiting for a place in the cluster: the run needs 9 CPUs; free are 8 of 8 CPUs"]


def test_of_two_runs_at_once_never_both_begin(cluster, monkeypatch):
    monkeypatch.setattr(admission, "_free", lambda others: Needs(8))  # Both asked before either kept anything.
    first = admission._keep("first", Needs(5))
    assert first is not None
    assert admission._keep("second", Needs(5)) is None
    assert [name for name, _ in admission._others()] == ["first"]
    admission.remove_placement_group(first)
    wait_until(lambda: not admission._others())


def test_an_autoscaler_is_asked_for_whole_actors():
    assert Needs(3, 1).bundles == [{"CPU": 1, "GPU": 1}, {"CPU": 1}, {"CPU": 1}]
