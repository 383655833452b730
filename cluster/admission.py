"""A run's place in a cluster that others use too: it begins when all it needs is free, and says meanwhile what it waits for.

    needs → free, and kept for no other run? → kept until the run ends → the run begins

Ray would start half a run's actors and let the rest wait; beside another such half both would wait for ever. So a run keeps its largest demand
from its beginning. What keeps it is a placement group that holds next to nothing: its name can be read by every driver, and it goes with its own.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from proxymix.errors import UserError

PREFIX = "proxymix-keeps"
NEXT_TO_NOTHING = {"node:__internal_head__": 0.0001}
"""Of a resource that every cluster's head node has; none that anything computes with."""
NODE_GROUP = "ray.io/node-group"
"""Label of nodes that an autoscaler brings and takes: Ray's cluster launcher and KubeRay set it, on the head too."""
POLL_S, REPEAT_S = 1.0, 60.0


@dataclass(frozen=True, order=True)
class Needs:
    """Logical resources, all at once at the most."""

    cpus: int
    gpus: int = 0

    def __str__(self) -> str:
        return f"{self.cpus} CPUs" + (f" and {self.gpus} GPUs" if self.gpus else "")

    @property
    def bundles(self) -> list[dict[str, float]]:
        """As Ray's autoscaler wants them: the actors, of one CPU each and the first with a GPU."""
        return [{"CPU": 1, "GPU": 1} if index < self.gpus else {"CPU": 1} for index in range(max(self.cpus, self.gpus))]


@contextmanager
def admitted(run: str, needs: Needs, timeout_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Keeps `needs` for `run` while the context is open; waits for them first.

    Where an autoscaler watches the cluster, it is asked for the nodes that are missing. Where none does, what the whole cluster
    does not have is not waited for.

    Args:
        run: name that other runs' messages tell.
        needs: of the run.
        timeout_s: how long to wait, seconds; 0: not at all.
        say: told at once, and every minute, what is asked and what is free.

    Raises:
        UserError: not all was free in time, or never will be.
    """
    began = last = time.monotonic()
    kept, asked = None, False
    try:
        while (kept := _keep(run, needs)) is None:
            shortage = _shortage(needs)
            if not _fits(needs, _unkept([])) and not _grows():
                raise UserError(
                    f"resources: {shortage}, and no other run's end will bring more; lower evaluation.actors, controller.num_env_runners or "
                    "target.parallelism, or add nodes (--num-cpus)"
                )
            if time.monotonic() - began >= timeout_s:
                raise UserError(
                    f"resources.queue_timeout_s: {shortage} after {timeout_s:g} s; wait for another run to end, raise it, or add nodes (--num-cpus)"
                )
            if not asked or time.monotonic() - last > REPEAT_S:
                say(f"waiting for a place in the cluster: {shortage}")
                request_resources(bundles=[bundle for _, other in [("", needs), *_others()] for bundle in other.bundles])
                asked, last = True, time.monotonic()
            time.sleep(POLL_S * random.uniform(0.5, 1.5))
        if asked:
            say(f"a place in the cluster after {time.monotonic() - began:.0f} s")
    finally:
        if asked:
            request_resources(bundles=[])  # What runs now says by itself what it needs.
    try:
        yield
    finally:
        remove_placement_group(kept)


def _keep(run: str, needs: Needs) -> PlacementGroup | None:
    """The group that keeps `needs`, or None where they are not free. Of two runs that keep the same at once, at most one succeeds."""
    if not _fits(needs, _free(_others())):
        return None
    group = placement_group([NEXT_TO_NOTHING], name=f"{PREFIX}/{needs.cpus}/{needs.gpus}/{run}")
    if _fits(needs, _unkept(_others(group))):
        return group
    remove_placement_group(group)  # Another run was as quick; both go back, and chance decides who asks first.
    return None


def _fits(needs: Needs, free: Needs) -> bool:
    return needs.cpus <= free.cpus and needs.gpus <= free.gpus


def _grows() -> bool:
    """Whether an autoscaler may add nodes."""
    return any(NODE_GROUP in node["Labels"] for node in ray.nodes() if node["Alive"])


def _others(own: PlacementGroup | None = None) -> list[tuple[str, Needs]]:
    """Runs that keep something, by name."""
    found = []
    for key, group in placement_group_table().items():
        parts = group["name"].split("/", 3)
        if parts[0] == PREFIX and group["state"] != "REMOVED" and (own is None or key != own.id.hex()):
            found.append((parts[3], Needs(int(parts[1]), int(parts[2]))))
    return found


def _unkept(others: list[tuple[str, Needs]]) -> Needs:
    """Of the whole cluster, what no other run keeps."""
    whole = ray.cluster_resources()
    return Needs(int(whole.get("CPU", 0)) - sum(needs.cpus for _, needs in others), int(whole.get("GPU", 0)) - sum(needs.gpus for _, needs in others))


def _free(others: list[tuple[str, Needs]]) -> Needs:
    """What nobody keeps and nobody, run or not, uses."""
    unkept, unused = _unkept(others), ray.available_resources()
    return Needs(min(unkept.cpus, int(unused.get("CPU", 0))), min(unkept.gpus, int(unused.get("GPU", 0))))


def _shortage(needs: Needs) -> str:
    others, whole = _others(), ray.cluster_resources()
    free = _free(others)
    keepers = ", ".join(f"run {name!r} keeps {kept}" for name, kept in others)
    in_all = Needs(int(whole.get("CPU", 0)), int(whole.get("GPU", 0)))
    return (
        f"the run needs {needs}; free are {max(free.cpus, 0)} of {in_all.cpus} CPUs"
        + (f" and {max(free.gpus, 0)} of {in_all.gpus} GPUs" if needs.gpus else "")
        + (f" ({keepers})" if keepers else "")
    )
