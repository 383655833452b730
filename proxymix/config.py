"""Everything a person decides, as one frozen pydantic tree.

    YAML file (over those it `extends`) + `key.path=value` overrides → Config → runs/<name>/config.yaml

An unknown key, a wrong type or a value out of range is one message that names the key's path (see `load_config`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from proxymix.ablation_config import AblationConfig
from proxymix.benchmark_config import BenchmarkConfig
from proxymix.controller_config import ControllerConfig, CurriculumConfig
from proxymix.errors import UserError
from proxymix.scoring_config import EvaluationConfig
from proxymix.service_config import ServiceConfig
from proxymix.study_config import MirroringStudyConfig
from proxymix.sweep_config import SweepConfig
from proxymix.tracking import TrackingConfig
from proxymix.tuning_config import (
    LoraConfig,
    ModelConfig,
    PretrainingConfig,
    ProxyConfig,
    SequenceConfig,
    SourceConfig,
    Strict,
    TargetConfig,
    TuningConfig,
)

__all__ = [
    "Config",
    "ControllerConfig",
    "CurriculumConfig",
    "LoraConfig",
    "ModelConfig",
    "ServiceConfig",
    "SourceConfig",
    "TuningConfig",
    "load_config",
    "validated",
]


class FallbackConfig(Strict):
    """The mixture used when the controller is away or must not be trusted: uniform over buffers."""

    replay_share: float = Field(default=0.3, ge=0, le=1)


class GuardConfig(Strict):
    """The check that goes on while the target is tuned: its loss rises against those the proxy showed in like states."""

    enabled: bool = False
    num_runs: int = Field(default=40, ge=2)
    """Proxy runs under the frozen controller that say what is expected, drawn like the curriculum."""
    window: int = Field(default=16, ge=1)
    """Stages compared at a time."""
    min_readings: int = Field(default=20, ge=3)
    """Loss changes that a window must hold before it may raise an alarm."""
    min_rank_correlation: float | None = Field(default=None, ge=-1, le=1)
    """Below it the run moves to `transfer.fallback` for good. None: as low as `false_alarms` of the proxy's own runs wants it."""
    false_alarms: float = Field(default=0.05, ge=0, lt=1)
    """Share of the proxy's runs that may lie below the bound, each judged by what the others showed."""


class TransferConfig(Strict):
    """The mirroring check, the gate it decides, and the guard behind it."""

    num_sequences: int = Field(default=3, ge=1)
    """Pilot sequences, drawn like the curriculum."""
    num_seeds: int = Field(default=2, ge=1)
    """Pilot seeds per sequence; two or more give the same-model noise ceiling."""
    replay_share: float = Field(default=0.1, ge=0, le=1)
    """Uniform replay during pilots."""
    min_rank_correlation: float = Field(default=0.6, ge=-1, le=1)
    min_interval_bound: float = Field(default=0.3, ge=-1, le=1)
    """The lower end of ρ's 95 % interval must exceed this."""
    on_failure: Literal["stop", "fallback"] = "fallback"
    fallback: FallbackConfig = FallbackConfig()
    guard: GuardConfig = GuardConfig()


class ResourcesConfig(Strict):
    """What the run asks of the machine or cluster."""

    logical_cpus: int | None = Field(default=None, ge=1)
    """Ray CPUs of a cluster started here. May exceed the cores: threads per process are set, so actors may queue on the cores."""
    memory_gib: float = Field(default=2.0, gt=0)
    """Refuse to start with less free memory than this."""
    queue_timeout_s: float = Field(default=600.0, ge=0)
    """In a cluster that others use too: seconds to wait until all the run needs is free, before giving up; 0: not at all."""


PROXYMIX = "proxymix"
"""The method that asks the learnt controller."""
_NUMBER = r"\d+(\.\d+)?"
_SHARES = r"(random|proportional|loss_slope)_(100|\d{1,2}(\.\d+)?)"
Method = Annotated[str, Field(pattern=rf"^({PROXYMIX}|no_replay|{_SHARES}|ramp_{_NUMBER}|saturation(_{_NUMBER})?)$")]
"""`proxymix`, or what `proxymix.controllers.baselines.baseline` knows: `no_replay`, `random_<percent>`, `ramp_<c>`, `proportional_<percent>`,
`loss_slope_<percent>`, `saturation`, `saturation_<nats>`."""


class Config(Strict):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    """Seed of the controller's training and of everything shared."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1)
    """Target seeds; every method runs with each."""
    methods: list[Method] = Field(default_factory=lambda: ["proxymix", "no_replay", "random_10", "random_30", "random_50"], min_length=1)
    """Rows of the table."""
    data_root: str | None = None
    """Folder that relative source paths start from."""
    runs_root: str = "runs"
    """Run folders go here."""
    cache_root: str = "runs/.cache"
    """Base models, pilots, reference runs and encoded data, each by content; shared by runs, and safe to delete."""
    sequence: SequenceConfig
    pretraining: PretrainingConfig = PretrainingConfig()
    proxy: ProxyConfig = ProxyConfig()
    target: TargetConfig = TargetConfig()
    tuning: TuningConfig = TuningConfig()
    controller: ControllerConfig = ControllerConfig()
    sweep: SweepConfig = SweepConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    ablation: AblationConfig = AblationConfig()
    mirroring_study: MirroringStudyConfig = MirroringStudyConfig()
    transfer: TransferConfig = TransferConfig()
    service: ServiceConfig = ServiceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        workers, batch_size = self.target.parallelism.num_workers, self.tuning.batch_size
        if batch_size % workers:
            raise ValueError(f"target.parallelism.num_workers must divide tuning.batch_size, got {workers} and {batch_size}")
        for role, one in (("target", self.target), ("proxy", self.proxy)):
            asked = [key for key in ("lora", "micro_batch_size", "pack_tokens", "gradient_checkpointing") if getattr(one, key, None)]
            asked += ["parallelism.strategy=fsdp"] if one is self.target and self.target.parallelism.strategy == "fsdp" else []
            if asked and one.model.implementation != "transformers":
                raise ValueError(f"{role}.{asked[0]} needs {role}.model.implementation: transformers, got {one.model.implementation}")
            if one.pack_tokens is not None and one.pack_tokens < self.tuning.max_length:
                raise ValueError(f"{role}.pack_tokens must be at least tuning.max_length, got {one.pack_tokens} and {self.tuning.max_length}")
        lora = self.target.lora
        if lora and not lora.merged and (self.evaluation.engine != "vllm" or lora.rank > 512):
            raise ValueError(f"target.lora.merged must be true for evaluation.engine: transformers and rank > 512, got rank {lora.rank}")
        parallel = self.evaluation.tensor_parallel
        if parallel > 1 and not (self.target.parallelism.use_gpu and self.evaluation.engine == "vllm"):
            raise ValueError(f"evaluation.tensor_parallel must be 1 without target.parallelism.use_gpu and evaluation.engine: vllm, got {parallel}")
        if self.controller.episodes % (per_iteration := self.controller.episodes_per_iteration):
            raise ValueError(f"controller.episodes_per_iteration must divide controller.episodes, got {per_iteration} and {self.controller.episodes}")
        pools = {"controller.curriculum.pool": self.controller.curriculum.pool or [], "benchmark.choice.pool": self.benchmark.choice.pool or []}
        for key, specs in (pools | {f"benchmark.sequences.{name}": tasks for name, tasks in self.benchmark.orders.items()}).items():
            labels = [spec.label for spec in (*self.sequence.anchors, *specs)]
            if len(set(labels)) < len(labels):
                raise ValueError(f"sequence.anchors and {key} must have unique names, got {labels}; give one of them a name")
        if self.controller.path is not None and self.service.url is not None:
            raise ValueError(f"controller.path and service.url exclude each other, got {self.controller.path} and {self.service.url}; give one")
        slots, needed = self.controller.max_sources, len(self.sequence.anchors) + self.controller.curriculum.most_tasks
        if slots < needed:
            raise ValueError(f"controller.max_sources must hold the anchors and controller.curriculum.num_tasks, got {slots} for {needed}")
        return self

    @model_validator(mode="after")
    def _own_data(self) -> Config:
        """What the builtin benchmark supplies must be said for data of one's own."""
        tasks = self.sequence.tasks if isinstance(self.sequence.tasks, list) else []
        judged = [spec for order in self.benchmark.orders.values() for spec in order]
        own = [spec.label for spec in (*tasks, *self.sequence.anchors, *judged) if spec.format != "builtin"]
        presets = [role for role in ("proxy", "target") if getattr(self, role).model.preset]
        if own and presets and self.pretraining.tokenizer == "words":
            raise ValueError(
                f"pretraining.tokenizer must be bpe where {presets[0]}.model is a preset and data are not builtin ({', '.join(own)}), got words"
            )
        if PROXYMIX in self.methods and self.controller.curriculum.pool is None and any(spec.format != "builtin" for spec in tasks):
            raise ValueError("controller.curriculum.pool must be given where tasks are not builtin, got null; name what it may practise on")
        return self

    @property
    def training_seed(self) -> int:
        """Of the controller's training."""
        return self.seed if self.controller.seed is None else self.controller.seed

    @property
    def group_size(self) -> int:
        """Proxy episodes that are run side by side: at most `controller.proxies_side_by_side`, in groups that share out an iteration evenly."""
        controller, lean = self.controller, self.proxy.model.implementation == "lean"
        return math.gcd(controller.episodes_per_iteration, controller.proxies_side_by_side) if lean else 1

    @property
    def started_env_runners(self) -> int:
        """Env runners that learning starts: those of `controller.num_env_runners`, but no more than an iteration has groups of episodes."""
        return min(self.controller.num_env_runners, self.controller.episodes_per_iteration // self.group_size)

    @property
    def run_dir(self) -> Path:
        """`<runs_root>/<name>`."""
        return Path(self.runs_root) / self.name


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration in `path` with `key.path=value` overrides (values are YAML).

    A file may say `extends: other.yaml`, a path from its own folder: mappings of both are merged, what the file itself says stands.

    Raises:
        UserError: a file is missing or no YAML mapping, files extend each other, or a key, type or range is wrong; names the key's path.
    """
    tree = config_tree(path)
    for override in overrides or []:
        _apply_override(tree, override)
    return validated(tree, str(path))


def config_tree(path: str | Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What the file and those it extends say together, not yet checked."""
    file = Path(path).resolve()
    if file in seen:
        raise UserError(f"extends: {str(path)!r} must not extend itself; it does through {', '.join(other.name for other in seen)}")
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"config: cannot read {str(path)!r} ({reason}); pass --config with an existing YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"config: {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: {str(path)!r} must hold a mapping at top level, got {type(tree).__name__}")
    beneath = tree.pop("extends", None)
    if beneath is None:
        return tree
    if not isinstance(beneath, str):
        raise UserError(f"extends: must be the path of one YAML file, got {beneath!r} in {str(path)!r}")
    return _merged(config_tree(file.parent / beneath, (*seen, file)), tree)


def _merged(beneath: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings key by key; lists and values are replaced whole."""
    both = {key: _merged(beneath[key], value) for key, value in above.items() if isinstance(value, dict) and isinstance(beneath.get(key), dict)}
    return beneath | above | both


def validated(tree: dict[str, Any], origin: str) -> Config:
    """`tree` as a Config.

    Raises:
        UserError: one line per fault, each with the key's path and the value found.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"config {origin}:\n" + "\n".join(map(_fault_line, error.errors()))) from None


def _fault_line(fault: Any) -> str:
    """`  tuning.batch_size: Input should be greater than or equal to 1, got -1`."""
    message = str(fault["msg"]).removeprefix("Value error, ")
    path = ".".join(str(part) for part in fault["loc"])
    return f"  {path}: {message}, got {_short(fault['input'])}" if path else f"  {message}"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override must be key.path=value, got {override!r}")
    node: Any = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent!r} is not a mapping, so nothing can be set below it")
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
