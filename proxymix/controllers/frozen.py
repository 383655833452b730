"""The frozen controller: a folder of weights and a card, run on numpy alone.

save_controller(...) → controller.safetensors + controller.json → FrozenController.load(folder).decide(boundary)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from proxymix.artifacts import write_bytes, write_json
from proxymix.controllers.policy import EquivariantPolicy, FlatPolicy, Parameters, build_policy
from proxymix.errors import UserError
from proxymix.feature_groups import Groups
from proxymix.observation import CONTEXT_FEATURES, SOURCE_FEATURES, Normalisation
from proxymix.types import Decision, StageBoundary

SCHEMA_VERSION = 2
WEIGHTS, CARD = "controller.safetensors", "controller.json"
SHIPPED = "shipped"
"""In the place of a folder: the controller that comes with the project (a folder of that name is `./shipped`)."""
MAX_FILE_BYTES = 64 * 2**20
"""Of each file; a controller has some kilobytes."""


def observation_names(architecture: str) -> list[str]:
    """Names of what the policy reads, written into the card and checked on loading."""
    if architecture == "flat":
        return ["normalised_loss", "normalised_loss_change", "is_current", "progress"]
    return [f"context.{name}" for name in CONTEXT_FEATURES] + [f"source.{name}" for name in SOURCE_FEATURES]


def save_controller(
    folder: str | Path, parameters: Parameters, *, name: str, architecture: str, facts: Mapping[str, Any], without: Groups = ()
) -> str:
    """Freezes `parameters` into `folder`, each file written whole or not at all, the card last.

    Args:
        folder: made if absent.
        parameters: of a `proxymix.controllers.policy` policy; stored as float32.
        name: as it stands in tables and answers.
        architecture: `equivariant` or `flat`.
        facts: what else the card should tell: training sequences, seed, versions, cost.
        without: groups of features it has learnt to do without.

    Returns:
        SHA-256 of the weights file.
    """
    # In the weights' file too, so that the hash tells apart two policies that read different things with equal weights.
    metadata = {"without": ",".join(sorted(without))} if without else None
    weights = save({key: np.ascontiguousarray(value, dtype=np.float32) for key, value in sorted(parameters.items())}, metadata)
    digest = hashlib.sha256(weights).hexdigest()
    card = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "architecture": architecture,
        "max_sources": build_policy(architecture, parameters).max_sources,
        "observation": observation_names(architecture),
        "without": sorted(without),
        "normalisation": asdict(Normalisation()),
        "sha256": digest,
        **facts,
    }
    write_bytes(Path(folder) / WEIGHTS, weights)
    write_json(Path(folder) / CARD, card)
    return digest


def copy_controller(path: str | Path, folder: Path) -> FrozenController:
    """The frozen controller in `path` (as `FrozenController.load`), copied into `folder` file by file, the card last.

    Raises:
        UserError: as `FrozenController.load`.
    """
    controller = FrozenController.load(path)
    for name in (WEIGHTS, CARD):
        write_bytes(folder / name, _read(path, name))
    return controller


class FrozenController:
    """A trained policy that no longer learns; implements `proxymix.types.Controller`."""

    def __init__(self, policy: EquivariantPolicy | FlatPolicy, card: Mapping[str, Any]) -> None:
        """Use `load`; this is for policies that were never written down."""
        self.policy, self.card = policy, card
        self.name: str = card["name"]
        self.sha256: str | None = card.get("sha256")
        self.max_sources = policy.max_sources

    @classmethod
    def load(cls, folder: str | Path) -> FrozenController:
        """The controller in `folder`: a path, any fsspec URL, or `shipped`.

        Raises:
            UserError: a file is missing, unreadable or too large, the weights do not have the card's hash, or the card was made for other weights
                or observations.
        """
        try:
            card, weights = json.loads(_read(folder, CARD)), _read(folder, WEIGHTS)
        except (OSError, ValueError, ImportError) as error:  # ImportError: fsspec lacks the file system's own library.
            raise UserError(f"controller: cannot read {str(folder)!r} ({error}); run jobs.train_controller first") from error
        if not isinstance(card, dict):
            raise UserError(f"controller {str(folder)!r}: {CARD} must hold a mapping, got {type(card).__name__}; the folder is damaged, train anew")
        digest = hashlib.sha256(weights).hexdigest()
        _check(folder, "schema_version", card.get("schema_version"), SCHEMA_VERSION)
        _check(folder, "sha256", digest, card.get("sha256"))
        # What decides is held against the file that is hashed, or against this code: an edited card cannot change a decision under the same hash.
        architecture, without = _hashed_facts(weights)
        _check(folder, "architecture", card.get("architecture"), architecture)
        _check(folder, "without", card.get("without", []), without)
        _check(folder, "observation", card.get("observation"), observation_names(architecture))
        _check(folder, "normalisation", card.get("normalisation"), asdict(Normalisation()))
        return cls(build_policy(architecture, load(weights), without=tuple(without)), card)

    def decide(self, boundary: StageBoundary) -> Decision:
        """The policy's mean action as mixture weights; deterministic."""
        action = self.policy.act(self.policy.observe(boundary))
        weights = self.policy.mixture(action, boundary)
        return Decision(dict(zip(boundary.names, weights.tolist(), strict=True)), self.name, self.sha256)


def _check(folder: str | Path, field: str, found: object, expected: object) -> None:
    if found != expected:
        raise UserError(
            f"controller {str(folder)!r}: {field} must be {expected}, got {found}; the folder is damaged or of another version, train anew"
        )


def _hashed_facts(weights: bytes) -> tuple[str, list[Any]]:
    """Architecture and groups left out, as the weights' file itself tells: its names of tensors and its metadata."""
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])  # The format: the header's length in 8 bytes, then JSON.
    without = header.get("__metadata__", {}).get("without", "")
    return "flat" if "bias_2" in header else "equivariant", without.split(",") if without else []


def _read(folder: str | Path, name: str) -> bytes:
    """A file of the folder. A local one needs nothing but Python; fsspec is imported where there is a URL."""
    if str(folder) == SHIPPED:
        folder = Path(__file__).parents[1] / SHIPPED
    if "://" in str(folder):
        import fsspec

        opened = fsspec.open(f"{str(folder).rstrip('/')}/{name}", "rb")
    else:
        opened = (Path(folder) / name).open("rb")
    with opened as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{name} must be at most {MAX_FILE_BYTES} bytes")
    return bytes(content)
