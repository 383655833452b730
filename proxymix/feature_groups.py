"""Which inputs a policy does without: groups of features, read as 0. For ablations; the card of a frozen controller says which.

observation, names of groups → without_groups → the same vector with those features at 0 (losses in nats without `normalisation`)
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from proxymix.observation import CONTEXT_FEATURES, SOURCE_FEATURES, equivariant_layout, in_nats

FloatArray = NDArray[np.float64]

FeatureGroup = Literal["trend", "normalisation", "loss", "regression", "buffers", "position", "roles", "age"]
GROUPS: dict[FeatureGroup, tuple[str, ...]] = {
    "trend": ("current_slope", "slope"),
    "loss": ("log_current_loss", "log_loss"),
    "regression": ("log_total_regression", "log_regression"),
    "buffers": ("log_num_buffers",),
    "position": ("position",),
    "roles": ("is_anchor", "is_freshest"),
    "age": ("age",),
}
"""Features of the equivariant observation by group. `bias` is in none: it is no observation. `normalisation` is how losses are read, no feature."""
IN_LOG_NATS = (*GROUPS["loss"], *GROUPS["regression"])
"""What is read in nats, not in their logarithms, without `normalisation`."""
FLAT_GROUPS: tuple[FeatureGroup, ...] = ("trend", "normalisation", "loss", "position")
"""What the paper's state has."""
assert set(get_args(FeatureGroup)) == {*GROUPS, "normalisation"}

Groups = Collection[FeatureGroup]


def without_groups(observation: FloatArray, slots: int, without: Groups) -> FloatArray:
    """An equivariant observation as a policy reads it that does without some groups; the masks stay, and so does padding.

    Args:
        observation: `[C + N·F + 2N]` with N = `slots`.
        slots: of sources.
        without: groups to leave out.
    """
    if not without:
        return observation
    read = observation.copy()
    context, sources, visible, _ = equivariant_layout(slots)
    read[context] = _read(observation[context], CONTEXT_FEATURES, without)
    own = _read(observation[sources].reshape(slots, len(SOURCE_FEATURES)), SOURCE_FEATURES, without)
    read[sources] = (own * observation[visible][:, None]).ravel()
    return read


def flat_without_groups(observation: FloatArray, max_sources: int, without: Groups) -> FloatArray:
    """The paper's state `[3·max_sources + 1]` without some groups; in what unit its losses are is `flat_observation`'s to say."""
    read = observation.copy()
    parts = {"loss": slice(0, max_sources), "trend": slice(max_sources, 2 * max_sources), "position": slice(3 * max_sources, None)}
    for group in without:
        if group in parts:
            read[parts[group]] = 0.0
    return read


def _read(features: FloatArray, names: tuple[str, ...], without: Groups) -> FloatArray:
    """Features `[…, num_features]`."""
    absent = {name for group in without if group in GROUPS for name in GROUPS[group]}
    read = features.copy()
    if "normalisation" in without:
        logs = [index for index, name in enumerate(names) if name in IN_LOG_NATS]
        read[..., logs] = in_nats(features[..., logs])
    read[..., [index for index, name in enumerate(names) if name in absent]] = 0.0
    return read
