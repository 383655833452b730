"""The part of a config that says how checkpoints are scored: who answers, and how answers are graded where words alone do not do."""

from __future__ import annotations

from typing import Literal

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
    """True: run also where the machine does not let us cut a process off; it then has the network and the user's files. False: unscored there."""


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


class EvaluationConfig(Strict):
    """How checkpoints are scored while tuning goes on."""

    engine: Literal["vllm", "transformers"] = "vllm"
    actors: int = Field(default=1, ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share each actor's engine, for a target that one of them cannot hold (`vllm`); must divide the model's attention heads."""
    max_new_tokens: int = Field(default=8, ge=1)
    test_size: int = Field(default=64, ge=1)
    """At most this many test examples per source."""
    keep_checkpoints: Literal["all", "last"] = "all"
    """`last`: a checkpoint goes once it is scored, but for the last one of every target run."""
    kv_cache_mib: int = Field(default=64, ge=1)
    """Memory for vLLM's key-value cache, per actor (CPU engine)."""
    code: CodeConfig = CodeConfig()
    judge: JudgeConfig | None = None
    """Who says whether an answer refuses; None: the rules of `proxymix.evaluation.refusal`."""

    @property
    def gpus(self) -> int:
        """Of all actors together, where the target uses GPUs."""
        return self.actors * self.tensor_parallel
