"""The part of a config that says how answers are graded where words alone do not do: programs that are run, a model that judges."""

from __future__ import annotations

from pydantic import Field

from proxymix.tuning_config import Strict


class CodeConfig(Strict):
    """Programs of the model are run against the tests of their row, each in a process of its own with bounds (`proxymix.evaluation.sandbox`)."""

    enabled: bool = False
    """False: nothing that a model wrote is ever run, and such answers stay unscored."""
    timeout_s: float = Field(default=10.0, gt=0)
    """Seconds a program and its tests may take; as many of CPU time."""
    memory_mib: int = Field(default=1024, ge=64)
    """Address space of the process."""
    allow_network: bool = False
    """True: run also where the machine does not let us cut a process off the network. False: answers stay unscored there."""


class JudgeConfig(Strict):
    """A model behind an OpenAI-compatible HTTP address that says whether an answer refuses, instead of the rules."""

    url: str = Field(pattern=r"^https?://")
    """Of the API, up to and with `/v1`."""
    model: str
    """As the server names it."""
    token_env: str | None = None
    """Environment variable that holds the bearer token."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Of one question."""
    attempts: int = Field(default=4, ge=1)
    """Questions asked, with growing pauses, before an answer is left unscored."""
