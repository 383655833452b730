"""Which controllers a service answers for, by name, version and hash; replaced as a whole while it runs.

    {"controllers": [{path, name?, version?, sha256?}, …]} → load_entries → Catalogue.replace → Catalogue.find(name, version, sha256)

One rule of order: the first entry is the service's default, and the first of a name is that name's default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import Field, ValidationError

from proxymix.controllers.frozen import FrozenController
from proxymix.errors import UserError
from proxymix.service_config import ServedControllerConfig, is_label
from proxymix.tuning_config import Strict
from proxymix.types import Controller, SourceReading, StageBoundary
from services.schemas import DecisionResponse

TRIAL = StageBoundary(1, 0, 1, (SourceReading("old", "past", (1.0, 1.0), 1.0), SourceReading("new", "current", (1.0,))))
"""The least there is to decide."""


class ServableController(Controller, Protocol):
    """What the service needs to know of a controller beside `decide`."""

    sha256: str | None
    """Hash of its weights; one without cannot be served, because callers pin it."""
    card: Mapping[str, Any]
    """How it was trained; answered by GET /v1/controller."""
    max_sources: int | None
    """Most sources it can weigh; None: any number."""


@dataclass(frozen=True)
class Entry:
    """One version of one controller."""

    controller: ServableController
    version: str

    @property
    def name(self) -> str:
        """The controller's."""
        return self.controller.name

    @property
    def sha256(self) -> str:
        """Of its weights; callers pin it."""
        return self.controller.sha256 or ""

    @property
    def label(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"


def entry_of(controller: ServableController, version: str | None = None) -> Entry:
    """`controller` under a version (default: the first twelve digits of its hash).

    Raises:
        ValueError: it has no hash.
    """
    if controller.sha256 is None:
        raise ValueError(f"controller {controller.name!r} has no sha256; save and load it first")
    return Entry(controller, version or controller.sha256[:12])


class CatalogueConfig(Strict):
    """What a Serve config update carries as `user_config`."""

    controllers: list[ServedControllerConfig] = Field(min_length=1, max_length=1000)
    """The first is the default."""


class Catalogue:
    """The controllers of one replica. A request looks up once, so a replacement in the middle of it changes nothing for it."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        """Empty until `replace`, unless `entries` are given."""
        self.entries = tuple(entries)
        self.reload_error: str | None = None
        """Why the last replacement was not taken; None when it was."""

    def replace(self, entries: Sequence[Entry]) -> None:
        """All at once: nobody sees half of it.

        Raises:
            UserError: none is given, or two have the same name and version.
        """
        labels = [entry.label for entry in entries]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if not entries or twice:
            raise UserError(f"controllers: at least one, each with its own name and version, got {twice or labels}; give other versions")
        self.entries, self.reload_error = tuple(entries), None

    def find(self, name: str | None = None, version: str | None = None, sha256: str | None = None) -> Entry:
        """The first entry that fits what is given; with nothing given the default.

        Args:
            name: None: the default's.
            version: None: any, the first of the name where there is no `sha256`.
            sha256: the only weights to accept; an older version of the name is found by them too.

        Raises:
            KeyError: no entry of that name and version.
            LookupError: there is one, but with other weights.
        """
        named = [entry for entry in self.entries if entry.name == (name or self.entries[0].name) and version in (None, entry.version)]
        if not named:
            raise KeyError(name)
        found = named[0] if sha256 is None else next((entry for entry in named if entry.sha256 == sha256), None)
        if found is None:
            raise LookupError(f"{named[0].label} has sha256 {named[0].sha256}, not {sha256}")
        return found


def load_entries(config: Mapping[str, Any] | CatalogueConfig) -> list[Entry]:
    """What `config` names, read, checked by hash and tried out.

    Raises:
        UserError: the config breaks a rule, or a controller cannot be loaded, has another hash, or cannot decide.
    """
    try:
        checked = config if isinstance(config, CatalogueConfig) else CatalogueConfig.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"user_config.{where}: {first['msg']}, got {first['input']!r}; give controllers: [{{path: …}}]") from error
    return [_load(source) for source in checked.controllers]


def _load(source: ServedControllerConfig) -> Entry:
    try:
        controller = FrozenController.load(source.path)
        DecisionResponse.from_decision(controller.decide(TRIAL), TRIAL, "trial")
    except UserError:
        raise
    except Exception as error:  # Whatever a damaged file can do to the code that reads it.
        raise UserError(f"controller {source.path!r}: cannot decide ({type(error).__name__}: {error}); the folder is damaged, train anew") from error
    if source.sha256 not in (None, controller.sha256):
        raise UserError(f"controller {source.path!r}: sha256 must be {source.sha256}, got {controller.sha256}; mend the path")
    controller.name = source.name or controller.name  # Its decisions say it too.
    if not is_label(controller.name):
        raise UserError(f"controller {source.path!r}: name must be letters, digits, '.', '_' or '-', got {controller.name!r}; give the entry one")
    return entry_of(controller, source.version)
