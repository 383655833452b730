"""Config keys of the controller service: what it serves, where it listens, and how it is asked."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, model_validator

from proxymix.tuning_config import Strict

LOOPBACK = ("127.0.0.1", "localhost")
LABEL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Names and versions: what a URL carries without escaping, and no path can be made of."""
Label = Annotated[str, Field(pattern=rf"^{LABEL}$")]


class ServedControllerConfig(Strict):
    """One version of one controller behind the service. Frozen weights never change, so a new training is a new version."""

    path: str
    """Folder with `controller.json`, or any fsspec URL of one (`s3://…`, `gs://…`, `memory://…`); read by every replica itself."""
    name: Label | None = None
    """As it stands in `/v1/controllers/{name}`; default: the card's."""
    version: Label | None = None
    """Unique under its name; default: the first twelve digits of the hash."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Hash that the weights must have, beside the card's own; None: the card's alone."""


class ServiceConfig(Strict):
    """Where the frozen controller answers."""

    url: str | None = None
    """An existing service; None: the pipeline deploys one with Ray Serve."""
    controller: str | None = Field(default=None, pattern=rf"^{LABEL}(@{LABEL})?$")
    """Which controller of the service to ask, `name` or `name@version`; None: its default."""
    controllers: list[ServedControllerConfig] = Field(default_factory=list)
    """More controllers behind a service of the run's own, beside the run's, which comes first and so is the default."""
    host: str = "127.0.0.1"
    """Name or IPv4 address; anything but this machine's loopback needs a token."""
    port: int = Field(default=8123, ge=1, le=65535)
    num_replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    """Replicas under load, at least num_replicas; None: as many as num_replicas, always."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Per attempt: for a connection, for the answer to begin, and for all of it to be there."""
    retries: int = Field(default=4, ge=0)
    """After the first attempt, with exponential back-off and jitter; then the declared fallback."""
    token_env: str | None = None
    """Name of the environment variable with the bearer token; None: no token asked."""
    token_file: str | None = None
    """File with the bearer token and nothing else, for secrets that are mounted; excludes token_env."""

    @property
    def is_guarded(self) -> bool:
        """Whether a token is asked."""
        return self.token_env is not None or self.token_file is not None

    @model_validator(mode="after")
    def _consistent(self) -> ServiceConfig:
        if self.token_env is not None and self.token_file is not None:
            raise ValueError(f"token_env and token_file exclude each other, got {self.token_env} and {self.token_file}; give one")
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas must be at least num_replicas, got {self.max_replicas} and {self.num_replicas}")
        if self.url is None and ":" in self.host:
            raise ValueError(f"host must be a name or an IPv4 address, got {self.host}; take 127.0.0.1 or 0.0.0.0")
        if self.url is None and self.host not in LOOPBACK and not self.is_guarded:
            raise ValueError(f"host {self.host} can be reached from outside, so token_env or token_file must be set; or listen on 127.0.0.1")
        return self


def is_label(text: str) -> bool:
    """Whether `text` can stand in a URL as a name or a version."""
    return re.fullmatch(LABEL, text) is not None
