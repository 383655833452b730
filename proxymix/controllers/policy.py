"""The learnt policies, in numpy: observation → action → mixture weights. RLlib's modules in `cluster/` compute the very same.

    equivariant: share = θ_c · [context, tanh(…)]      split_i = θ_s · [own_i, tanh(…)]      → share_split_mixture
    flat:        logits = W3 tanh(W2 tanh(W1 s))                                            → masked_mixture

Parameters are a flat dict of arrays, so that freezing is one call and averaging over training is a mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from proxymix.feature_groups import Groups, flat_without_groups, without_groups
from proxymix.mixture import masked_mixture, share_split_mixture
from proxymix.observation import CONTEXT_FEATURES, SOURCE_FEATURES, equivariant_layout, equivariant_observation, flat_observation
from proxymix.types import StageBoundary

FloatArray = NDArray[np.float64]
Parameters = Mapping[str, NDArray[np.floating]]

INITIAL_RAMP = 10.0
"""An untrained equivariant policy is the feedback-free ramp n/(n + 10), uniform over buffers."""


class Policy(Protocol):
    """Deterministic part of a controller; exploration belongs to training."""

    @property
    def max_sources(self) -> int | None:
        """Most sources it can be asked about; None: any number."""
        ...

    def observe(self, boundary: StageBoundary) -> FloatArray:
        """The vector the network reads."""
        ...

    def act(self, observation: FloatArray) -> FloatArray:
        """The mean action, one entry per slot."""
        ...

    def mixture(self, action: FloatArray, boundary: StageBoundary) -> FloatArray:
        """Weights over the visible sources, in their order."""
        ...


class EquivariantPolicy:
    """One shared scorer for any number and order of sources.

    Parameters: `context_gain [C + H]`, `source_gain [F + H]`, and with H hidden units
    `context_weight [H, C]`, `source_weight [H, F + C]`, `context_bias [H]`, `source_bias [H]`.
    """

    max_sources = None

    def __init__(self, parameters: Parameters, slots: int | None = None, without: Groups = ()) -> None:
        """Args: `slots` pads observations and actions to a fixed size (training); None: as many as are visible. `without`: groups left out."""
        self.parameters = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
        self.slots, self.without = slots, without

    def observe(self, boundary: StageBoundary) -> FloatArray:
        """`equivariant_observation` at this boundary's size (or padded to `slots`)."""
        slots = self.slots or len(boundary.sources)
        return without_groups(equivariant_observation(boundary, slots), slots, self.without)

    def act(self, observation: FloatArray) -> FloatArray:
        """Share logit at the current slot, split logits at the replayable ones, 0 elsewhere."""
        slots = (len(observation) - len(CONTEXT_FEATURES)) // (len(SOURCE_FEATURES) + 2)
        context, sources, visible, current = (observation[part] for part in equivariant_layout(slots))
        own = sources.reshape(slots, len(SOURCE_FEATURES))
        if "context_weight" in self.parameters:
            p = self.parameters
            both = np.concatenate([own, np.broadcast_to(context, (slots, len(context)))], axis=1)  # [N, F + C]
            own = np.concatenate([own, np.tanh(both @ p["source_weight"].T + p["source_bias"])], axis=1)
            context = np.concatenate([context, np.tanh(p["context_weight"] @ context + p["context_bias"])])
        share, split = context @ self.parameters["context_gain"], own @ self.parameters["source_gain"]
        return np.asarray(current * share + (visible - current) * split)

    def mixture(self, action: FloatArray, boundary: StageBoundary) -> FloatArray:
        """`share_split_mixture` over the visible sources."""
        count = len(boundary.sources)
        return share_split_mixture(action[:count], np.ones(count, dtype=bool), boundary.names.index(boundary.current.name))


class FlatPolicy:
    """The paper's two-layer MLP over a fixed maximum of sources.

    Parameters: `weight_0 [H, 3T+1]`, `bias_0 [H]`, `weight_1 [H, H]`, `bias_1 [H]`, `weight_2 [T, H]`, `bias_2 [T]`.
    """

    def __init__(self, parameters: Parameters, without: Groups = ()) -> None:
        """The number of sources T is read off the last layer. Args: `without`: groups of features left out."""
        self.parameters = {name: np.asarray(value, dtype=np.float64) for name, value in parameters.items()}
        self.max_sources, self.without = len(self.parameters["bias_2"]), without

    def observe(self, boundary: StageBoundary) -> FloatArray:
        """`flat_observation`, `[3T+1]`."""
        state = flat_observation(boundary, self.max_sources, in_nats="normalisation" in self.without)
        return flat_without_groups(state, self.max_sources, self.without)

    def act(self, observation: FloatArray) -> FloatArray:
        """Logits, `[T]`."""
        p, hidden = self.parameters, observation
        for layer in (0, 1):
            hidden = np.tanh(p[f"weight_{layer}"] @ hidden + p[f"bias_{layer}"])
        return np.asarray(p["weight_2"] @ hidden + p["bias_2"])

    def mixture(self, action: FloatArray, boundary: StageBoundary) -> FloatArray:
        """`masked_mixture` over the visible sources."""
        count = len(boundary.sources)
        return masked_mixture(action[:count], np.ones(count, dtype=bool))


def initial_parameters(architecture: str, hidden_units: int, max_sources: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Untrained parameters: the ramp (equivariant), or a near-uniform mixture (flat, orthogonal-scale normal layers)."""
    if architecture == "flat":
        width = hidden_units or 256
        sizes = [3 * max_sources + 1, width, width, max_sources]
        scales = [1.0, 1.0, 0.01]
        layers: dict[str, FloatArray] = {}
        for i, scale in enumerate(scales):
            layers[f"weight_{i}"] = rng.normal(scale=scale / np.sqrt(sizes[i]), size=(sizes[i + 1], sizes[i]))
            layers[f"bias_{i}"] = np.zeros(sizes[i + 1])
        return layers
    num_context, num_own = len(CONTEXT_FEATURES), len(SOURCE_FEATURES)
    context_gain = np.zeros(num_context + hidden_units)
    context_gain[CONTEXT_FEATURES.index("bias")] = -np.log(INITIAL_RAMP)
    context_gain[CONTEXT_FEATURES.index("log_num_buffers")] = 1.0
    parameters = {"context_gain": context_gain, "source_gain": np.zeros(num_own + hidden_units)}
    if hidden_units:
        parameters["context_weight"] = rng.normal(scale=num_context**-0.5, size=(hidden_units, num_context))
        parameters["context_bias"] = np.zeros(hidden_units)
        parameters["source_weight"] = rng.normal(scale=(num_own + num_context) ** -0.5, size=(hidden_units, num_own + num_context))
        parameters["source_bias"] = np.zeros(hidden_units)
    return parameters


def build_policy(architecture: str, parameters: Parameters, slots: int | None = None, without: Groups = ()) -> EquivariantPolicy | FlatPolicy:
    """The policy of that architecture; `slots` pads an equivariant one to the fixed size that training needs."""
    return FlatPolicy(parameters, without) if architecture == "flat" else EquivariantPolicy(parameters, slots, without)
