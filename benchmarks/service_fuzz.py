"""A hundred thousand requests, sound and otherwise, to the controller service; counts its answers and whatever is wrong with them.

    python benchmarks/service_fuzz.py [--requests 100000] [--seed 0]

    random_request → the application, in this process → faults(request, answer)

A fault: a 5xx, an answer that the schema does not allow, a sound boundary refused, a weight outside the simplex, or one on a source that is
not visible. Requests come one at a time, so not even 503 is an excuse. Prints counts and one JSON line; exit code 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import random
import sys
import time
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import ValidationError

from proxymix.controllers.frozen import SHIPPED, FrozenController
from proxymix.controllers.policy import build_policy, initial_parameters
from services.app import QUICK_LOSSES, build_app
from services.catalogue import Catalogue, entry_of
from services.schemas import DecisionResponse, ErrorResponse, SimulationResponse

MAX_FLAT = 8
"""Sources of the flat controller."""
PREFIXES = ("/v1", "/v1/controllers/flat", "/v1/controllers/flat/versions/1")
PATHS = (
    "/",
    "/docs",
    "/openapi.json",
    "/v1/controller",
    "/v1/controllers",
    "/v1/controllers/..%2f..",
    "/v1/runs",
    "/v1/runs/a/b",
    "/v1/runs/\0",
    "//",
)
PATHS += ("/v1/decisions", "/v1/controllers/\u202e", "/v1/controllers/" + "x" * 5000, "/page/../../etc/passwd", "/v1/decisions/", "/health/ready")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "\N{SNOWMAN}")
HEADERS = (b"content-type", b"if-match", b"x-proxymix-fallbacks", b"x-request-id", b"content-length", b"authorization", b"accept", b"host")
LETTERS = "abc_.-/\\\"'<>{}%\0\n\t\u00e9\u4e2d\u202e\N{SNOWMAN}\N{GRINNING FACE}"
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    10**6,
    10**30,
    -0.0,
    1e-320,
    1e6,
    1e308,
    math.nan,
    math.inf,
    "",
    "0",
    "x" * 2000,
    "\ud800",
    [],
    {},
)
NASTY += ([[[]]], {"": {}}, ["a"], [math.nan], "current", "anchor", "past")
BYTES = (b"", b"{", b"null", b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b'{"a":1,"a":2}', b'"\\ud800"', b"\xef\xbb\xbf{}", b"NaN", bytes(range(256)))


@dataclass
class Ask:
    """One request."""

    method: str = "POST"
    path: str = "/v1/decisions"
    body: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=lambda: [(b"content-type", b"application/json")])
    is_sound: bool = False
    """Whether the only right answer is 200."""


@dataclass
class Answer:
    """What came back; status 0: nothing did."""

    status: int = 0
    body: bytes = b""


def application() -> FastAPI:
    """As a replica builds it: the shipped controller, and an untrained one that takes `MAX_FLAT` sources at most."""
    flat = build_policy("flat", initial_parameters("flat", 16, MAX_FLAT, np.random.default_rng(0)))
    entries = [entry_of(FrozenController.load(SHIPPED)), entry_of(FrozenController(flat, {"name": "flat", "sha256": "0" * 64}), "1")]
    return build_app(Catalogue(entries), token=None, quick_losses=QUICK_LOSSES)


def random_request(rng: random.Random) -> Ask:
    """Half of them sound; of the others most differ in a place or two from one that is."""
    boundary = random_boundary(rng)
    prefix = rng.choice(PREFIXES)
    path = f"{prefix}/{rng.choice(('decisions', 'decisions', 'simulate'))}"
    kind = rng.random()
    if kind < 0.5:
        fits = prefix == "/v1" or len(boundary["sources"]) <= MAX_FLAT
        return Ask(path=path, body=encoded(boundary), is_sound=fits)
    if kind < 0.85:
        for _ in range(rng.randint(1, 2)):
            mutate(rng, boundary)
        return Ask(path=path, body=encoded(boundary))
    if kind < 0.9:
        return Ask(path=path, body=rng.choice((rng.choice(BYTES), rng.randbytes(rng.randint(0, 200)))))
    headers = [
        (name, rng.choice((rng.randbytes(rng.randint(0, 90)), b"-1", b"9" * 30, b'"' + b"0" * 64 + b'"'))) for name in HEADERS if rng.random() < 0.3
    ]
    return Ask(rng.choice(METHODS), rng.choice((path, rng.choice(PATHS))), encoded(boundary), headers)


def random_boundary(rng: random.Random) -> dict[str, Any]:
    """A boundary of a run from its beginning: every history as long as the run, of any losses from nothing to the limit.

    One in fifty is of a run so long that the service decides in a thread (`QUICK_LOSSES`).
    """
    num_anchors, task_index, num_stages = rng.randint(0, 4), rng.randint(0, 7), rng.randint(1, 5) if rng.random() < 0.98 else 30
    stage_index = rng.randrange(num_stages)
    names: set[str] = set()
    while len(names) < num_anchors + task_index + 1:
        names.add("".join(rng.choices(LETTERS, k=rng.randint(1, 12))))
    scale = rng.choice((1.0, 3.0, 1e-300, 1e6))
    sources: list[dict[str, Any]] = []
    for index, name in enumerate(rng.sample(sorted(names), len(names))):
        begun = max(index - num_anchors, 0)
        source = {"name": name, "losses": [rng.random() * scale for _ in range((task_index - begun) * num_stages + stage_index + 1)]}
        role = "anchor" if index < num_anchors else "past" if begun < task_index else "current"
        sources.append(source | {"role": role} | ({} if role == "current" else {"reference_loss": rng.random() * scale}))
    where = {"task_index": task_index, "stage_index": stage_index, "num_stages": num_stages}
    return {"request_id": f"run{rng.randrange(200)}/task{task_index}/stage{stage_index}", **where, "sources": sources}


def mutate(rng: random.Random, tree: Any) -> None:
    """Changes, takes away, doubles or adds one thing somewhere in `tree`."""
    while isinstance(tree, dict | list) and tree:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        if isinstance(tree[key], dict | list) and rng.random() < 0.8:
            tree = tree[key]
            continue
        action = rng.random()
        if action < 0.7:
            tree[key] = deepcopy(rng.choice(NASTY))
        elif action < 0.85:
            del tree[key]
        elif isinstance(tree, list):
            tree.append(tree[key])
        else:
            tree["".join(rng.choices(LETTERS, k=3))] = deepcopy(rng.choice(NASTY))
        return


def encoded(tree: Any) -> bytes:
    """JSON as Python writes it: NaN, Infinity and half surrogate pairs included."""
    return json.dumps(tree).encode()


async def ask(app: FastAPI, request: Ask) -> Answer:
    """As a server would."""
    answer, body = Answer(), iter([request.body])

    async def receive() -> dict[str, Any]:
        for part in body:
            return {"type": "http.request", "body": part, "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        answer.status = message.get("status", answer.status)
        answer.body += message.get("body", b"")

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "query_string": b"", "root_path": ""}
    scope |= {"method": request.method, "path": request.path, "raw_path": request.path.encode(), "headers": request.headers}
    await app({**scope, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}, receive, send)  # type: ignore[arg-type]
    return answer


def faults(request: Ask, answer: Answer) -> list[str]:
    """What is wrong with `answer`; most often nothing."""
    found = [f"status {answer.status}"] if not 200 <= answer.status < 500 else []
    if request.is_sound and answer.status != 200:
        found.append(f"a sound boundary refused: {answer.body!r}")
    try:
        if answer.status >= 400 and request.method != "HEAD":
            ErrorResponse.model_validate_json(answer.body)
        elif answer.status == 200 and request.method == "POST":
            names = [source["name"] for source in json.loads(request.body)["sources"]]
            found += _wrong_weights(request, answer, names)
    except ValidationError as error:
        found.append(f"not as the schema says: {error}")
    return found


def _wrong_weights(request: Ask, answer: Answer, names: list[str]) -> list[str]:
    if request.path.endswith("/simulate"):
        decisions = [decision.weights for decision in SimulationResponse.model_validate_json(answer.body).decisions]
    else:
        decisions = [DecisionResponse.model_validate_json(answer.body).weights]
    found = [f"no mixture: {weights}" for weights in decisions if not _is_mixture(weights)]
    # What is visible only grows, up to all that the request names.
    later = [*decisions[1:], dict.fromkeys(names, 0.0)]
    found += [f"a weight on an unseen source: {weights}" for weights, then in zip(decisions, later, strict=True) if not set(weights) <= set(then)]
    return found if set(decisions[-1]) == set(names) else [*found, f"a source without a weight: {decisions[-1]}"]


def _is_mixture(weights: dict[str, float]) -> bool:
    return all(0 <= weight <= 1 + 1e-9 for weight in weights.values()) and abs(math.fsum(weights.values()) - 1) < 1e-6


async def fuzz(num_requests: int, seed: int) -> tuple[Counter[int], list[str]]:
    """Sends them; returns the number of answers by status, and all faults with the request each belongs to."""
    app, rng = application(), random.Random(seed)
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    for _ in range(num_requests):
        request = random_request(rng)
        answer = await ask(app, request)
        statuses[answer.status] += 1
        wrong += [f"{fault} <- {request}" for fault in faults(request, answer)]
    return statuses, wrong


def main() -> None:
    """One run, counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="taken as by every benchmark; the service's limits are always the default ones")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # One line a request.
    start = time.perf_counter()
    statuses, wrong = asyncio.run(fuzz(arguments.requests, arguments.seed))
    seconds = round(time.perf_counter() - start, 1)
    print("\n".join(f"{status}: {count:7d}" for status, count in sorted(statuses.items())), *wrong[:20], sep="\n")
    facts = {"requests": arguments.requests, "seed": arguments.seed, "seconds": seconds, "statuses": dict(sorted(statuses.items()))}
    print(json.dumps({"benchmark": "service_fuzz", **facts, "faults": len(wrong)}))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
