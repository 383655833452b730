"""A controller service for tests: a rule in place of a trained policy, the contract's example, and clients without a network."""

import json
import math
from types import MappingProxyType

import numpy as np
from fastapi.testclient import TestClient

from proxymix.controllers.frozen import FrozenController, save_controller
from proxymix.controllers.policy import build_policy, initial_parameters
from proxymix.types import Decision
from services.app import build_app

SHA256 = "ab" * 32


class LossProportional:
    """A fake frozen controller: weights in proportion to the last loss, plus one."""

    name, sha256, max_sources = "fake", SHA256, None
    card = MappingProxyType({"architecture": "equivariant", "seed": 3})

    def decide(self, boundary):
        losses = {source.name: 1.0 + source.losses[-1] for source in boundary.sources}
        total = math.fsum(losses.values())
        return Decision({name: loss / total for name, loss in losses.items()}, self.name, self.sha256)


class Changed(LossProportional):
    """The fake with some attributes replaced."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def example():
    return {
        "request_id": "run7/seed0/task2/stage1",
        "task_index": 2,
        "stage_index": 1,
        "num_stages": 4,
        "sources": [
            {"name": "safety", "role": "anchor", "reference_loss": 0.40, "losses": [0.41, 0.45, 0.52]},
            {"name": "code", "role": "past", "reference_loss": 1.31, "losses": [1.90, 1.31, 1.58]},
            {"name": "math", "role": "current", "losses": [2.20, 1.75]},
        ],
    }


def client(controller=None, token=None, **limits):
    return TestClient(build_app(controller or LossProportional(), token=token, **limits), raise_server_exceptions=False)


def post(service, body, **headers):
    """`body` as Python's json writes it, NaN and Infinity included."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return service.post("/v1/decisions", content=content, headers={"Content-Type": "application/json", **headers})


def changed(path, value):
    """The example with the value at `path` replaced; `...` removes it."""
    body = example()
    *parents, leaf = path
    node = body
    for key in parents:
        node = node[key]
    if value is ...:
        del node[leaf]
    else:
        node[leaf] = value
    return body


def shaken(architecture):
    rng = np.random.default_rng(0)
    parameters = {name: value + 0.3 * rng.normal(size=value.shape) for name, value in initial_parameters(architecture, 4, 8, rng).items()}
    return FrozenController(build_policy(architecture, parameters), {"name": architecture, "sha256": SHA256})


def frozen(architecture):
    policy = build_policy(architecture, initial_parameters(architecture, 4, 8, np.random.default_rng(0)))
    return FrozenController(policy, {"name": architecture, "sha256": SHA256})


def save(folder, shift, name="served"):
    """Freezes a controller that decides as `shift` has it into `folder`; returns its hash."""
    parameters = {key: value + shift for key, value in initial_parameters("equivariant", 0, 6, np.random.default_rng(0)).items()}
    return save_controller(folder, parameters, name=name, architecture="equivariant", facts={"seed": 0})
