"""The controller service against FastAPI deployments that do nothing, on one Ray Serve, loaded in turn.

    python benchmarks/service_load.py [--seconds 60] [--round 2] [--clients 4]

All stand behind the same proxy with one replica and the same limits, and get the same body: the last boundary of a run of six sources. `reader`
reads it and answers {}; the controller also checks it, decides, remembers, counts and logs. `noop` answers {} without reading it, and so is spared
what no service that takes a body can be: Serve does not send a body along, the replica asks the proxy for it, which is a call back and forth.
Goals, against `reader`: p99 at most 1.3 times, rate at least .9 times, no error. Prints all, their ratios and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import time
import warnings
from dataclasses import dataclass, field

os.environ.setdefault("OMP_NUM_THREADS", "1")

import aiohttp
import numpy as np
import ray
from fastapi import FastAPI, Request
from ray import serve
from ray.serve.schema import LoggingConfig

from proxymix.controllers.frozen import SHIPPED
from proxymix.service_config import ServiceConfig
from services.app import MAX_IN_FLIGHT
from services.deployment import deploy, undeploy
from services.replica import MAX_QUEUED_REQUESTS

NUM_STAGES, NUM_TASKS, ANCHORS = 4, 4, ("safety", "general")
NOOP = FastAPI()


@NOOP.post("/v1/decisions")
async def nothing() -> dict[str, str]:
    """What a request costs that asks for nothing."""
    return {}


@NOOP.post("/reading/v1/decisions")
async def reading(request: Request) -> dict[str, str]:
    """What one costs that takes what it is sent."""
    await request.body()
    return {}


@serve.deployment(
    ray_actor_options={"num_cpus": 0.1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
    max_ongoing_requests=MAX_IN_FLIGHT,
    max_queued_requests=MAX_QUEUED_REQUESTS,
    logging_config=LoggingConfig(enable_access_log=False),
)
@serve.ingress(NOOP)
class Noop:
    """The deployment that does nothing."""


@dataclass
class Load:
    """What was heard from one address."""

    url: str
    round_s: list[float] = field(default_factory=list)
    """Length of each round."""
    seconds: list[list[float]] = field(default_factory=list)
    """Of every good answer, by round."""
    errors: list[str] = field(default_factory=list)

    def p(self, percent: float) -> float:
        """Percentile over all rounds, milliseconds."""
        return 1e3 * float(np.percentile(np.concatenate(self.seconds), percent))

    def rate(self) -> float:
        """Good answers a second."""
        return sum(map(len, self.seconds)) / sum(self.round_s)

    def facts(self) -> dict[str, float]:
        """For the record."""
        milliseconds = {f"p{percent}_ms": round(self.p(percent), 2) for percent in (50, 90, 99)}
        return {"requests": sum(map(len, self.seconds)), "rate": round(self.rate(), 1), **milliseconds, "errors": len(self.errors)}


def boundary() -> bytes:
    """The last one of a run, when histories are longest."""
    num_boundaries = NUM_TASKS * NUM_STAGES
    anchors = [{"name": name, "role": "anchor", "reference_loss": 0.4, "losses": [0.4 + 0.01 * i for i in range(num_boundaries)]} for name in ANCHORS]
    tasks = [
        {"name": f"task{k}", "role": "past", "reference_loss": 1.3, "losses": [1.9] * (num_boundaries - k * NUM_STAGES)} for k in range(NUM_TASKS)
    ]
    tasks[-1] = {"name": "now", "role": "current", "losses": [2.2, 2.0, 1.9, 1.7]}
    where = {"task_index": NUM_TASKS - 1, "stage_index": NUM_STAGES - 1, "num_stages": NUM_STAGES}
    return json.dumps({"request_id": f"load/task{NUM_TASKS - 1}/stage{NUM_STAGES - 1}", **where, "sources": anchors + tasks}).encode()


async def one_round(session: aiohttp.ClientSession, load: Load, seconds: float, num_clients: int) -> None:
    """`num_clients` callers, each asking again as soon as it has its answer."""
    body, heard, start = boundary(), [], time.perf_counter()

    async def caller() -> None:
        while (began := time.perf_counter()) - start < seconds:
            try:
                async with session.post(f"{load.url}/v1/decisions", data=body, headers={"Content-Type": "application/json"}) as answer:
                    await answer.read()
                    if answer.status == 200:
                        heard.append(time.perf_counter() - began)
                    else:
                        load.errors.append(str(answer.status))
            except aiohttp.ClientError as error:
                load.errors.append(repr(error))

    await asyncio.gather(*(caller() for _ in range(num_clients)))
    load.seconds.append(heard)
    load.round_s.append(time.perf_counter() - start)


async def measure(loads: list[Load], seconds: float, round_s: float, num_clients: int) -> None:
    """`seconds` for each, a round at a time in turn, and who begins changes; the first round of each only warms up."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for load in loads:
            await one_round(session, load, round_s, num_clients)
            load.seconds.clear()
            load.round_s.clear()
        for number in range(round(seconds / round_s)):
            for load in loads if number % 2 else loads[::-1]:
                await one_round(session, load, round_s, num_clients)


def main() -> None:
    """Serves both, loads both, takes both down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="taken as by every benchmark; the service is always the shipped controller's")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--round", type=float, default=2.0)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Ray Serve itself uses what is deprecated.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        service = ServiceConfig(port=probe.getsockname()[1])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        controller = Load(deploy(SHIPPED, service, route_prefix="/controller"))
        serve.run(Noop.bind(), name="noop", route_prefix="/noop")
        noop = Load(f"http://127.0.0.1:{service.port}/noop")
        reader = Load(f"http://127.0.0.1:{service.port}/noop/reading")
        asyncio.run(measure([controller, noop, reader], arguments.seconds, arguments.round, arguments.clients))
        serve.delete("noop")
        undeploy()
    finally:
        ray.shutdown()
    loads = {"controller": controller, "noop": noop, "reader": reader}
    for name, load in loads.items():
        print(f"{name:10s}" + "".join(f"  {key} {value}" for key, value in load.facts().items()), *set(load.errors))
    facts = {"benchmark": "service_load", "seconds": arguments.seconds, "round_s": arguments.round, "clients": arguments.clients}
    ratios = {f"controller_over_{name}": compared(controller, loads[name]) for name in ("noop", "reader")}
    print(json.dumps({**facts, **{name: load.facts() for name, load in loads.items()}, **ratios}))


def compared(ours: Load, theirs: Load) -> dict[str, float | list[float]]:
    """What counts: the ratios over all rounds, and from round to round their median, first and third quartile."""
    ours_p99, theirs_p99 = ([np.percentile(one, 99) for one in load.seconds] for load in (ours, theirs))
    rates = ([len(one) / seconds for one, seconds in zip(load.seconds, load.round_s, strict=True)] for load in (ours, theirs))
    return {
        "p50": round(ours.p(50) / theirs.p(50), 3),
        "p99": round(ours.p(99) / theirs.p(99), 3),
        "p99_by_round": quartiles(np.divide(ours_p99, theirs_p99)),
        "rate": round(ours.rate() / theirs.rate(), 3),
        "rate_by_round": quartiles(np.divide(*rates)),
    }


def quartiles(ratios: np.ndarray) -> list[float]:
    """Median, first and third."""
    return [round(float(value), 3) for value in np.percentile(ratios, (50, 25, 75))]


if __name__ == "__main__":
    main()
