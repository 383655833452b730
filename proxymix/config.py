"""Everything a person decides, as one frozen pydantic tree.

    YAML file + `key.path=value` overrides → Config → runs/<name>/config.yaml

An unknown key, a wrong type or a value out of range is one message that names the key's path (see `load_config`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from proxymix.errors import UserError


class Strict(BaseModel):
    """Frozen, no unknown keys, docstrings under fields become their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _from_shorthand(value: Any) -> Any:
    """`"table_small@heldout-0"` means `{format: builtin, task: table_small, world: heldout-0}`."""
    if isinstance(value, str):
        task, _, world = value.partition("@")
        return {"format": "builtin", "task": task, "world": world or None}
    return value


class SourceConfig(Strict):
    """Where one source's examples come from. A bare string is a builtin task: `task` or `task@world`."""

    format: Literal["builtin", "jsonl", "cl_benchmark", "trace", "huggingface", "xstest"]
    """Layout of the data on disk; `builtin` needs no data."""
    name: str | None = None
    """Unique name in tables and plots; default: the task or folder name."""
    task: str | None = None
    """Builtin task type, or the task's folder for cl_benchmark (`TC/agnews`) and trace."""
    world: str | None = None
    """Builtin only: which world's tables, lexica and ciphers."""
    path: str | None = None
    """File or folder; relative paths are taken under `data_root`. For huggingface: hub name or local folder."""
    columns: dict[str, str] = Field(default_factory=dict)
    """huggingface only: maps `prompt`, `response` (or `messages`) to the data set's columns."""
    completions: str | None = None
    """xstest only: a completions file beside the prompts, used for the harmless answers."""
    limit: int | None = Field(default=None, ge=8)
    """At most this many training rows, drawn with the run's seed."""

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        needs = {"builtin": "task", "cl_benchmark": "task", "trace": "task"}.get(self.format, "path")
        if getattr(self, needs) is None:
            raise ValueError(f"format {self.format!r} needs {needs!r}")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @property
    def label(self) -> str:
        """The name the source goes by everywhere."""
        return self.name or Path(self.task or self.path or "").stem


SourceSpec = Annotated[SourceConfig, BeforeValidator(_from_shorthand)]


class SequenceConfig(Strict):
    """The stream of domains, and what must not be forgotten meanwhile."""

    tasks: str | list[SourceSpec]
    """In order; or the name of a builtin sequence, `sharp_shift@heldout-0`."""
    anchors: list[SourceSpec] = Field(default_factory=lambda: [SourceConfig(format="builtin", task=n) for n in ("safety", "general")])
    """Behaviours of the base model, visible and replayable from the first task on."""


class ModelConfig(Strict):
    """One causal language model: a preset trained here, or an existing one. Exactly one of `preset`, `path`, `hub`."""

    preset: Literal["nano", "micro", "mini", "small"] | None = None
    """Llama geometry trained from scratch on the anchors: hidden × layers 32×2, 64×2, 96×3, 128×4."""
    path: str | None = None
    """A Hugging Face model folder."""
    hub: str | None = None
    """A Hugging Face hub name, downloaded by transformers."""
    implementation: Literal["lean", "transformers"] = "lean"
    """`lean`: our own Llama decoder, equal to transformers' and several times faster when tiny. `transformers`: any architecture."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        given = [k for k in ("preset", "path", "hub") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of preset, path, hub must be given, got {given or 'none'}")
        return self


class PretrainingConfig(Strict):
    """How presets become base models. Only the anchors and the pre-training worlds are seen."""

    tokenizer: Literal["words", "bpe"] = "words"
    """`words`: the builtin benchmark's closed vocabulary. `bpe`: byte-level BPE trained on the anchors alone."""
    vocabulary_size: int = Field(default=2000, ge=256)
    """Tokens of the bpe tokenizer."""
    num_steps: int = Field(default=2500, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=64, ge=1)
    """Examples per step."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak, cosine to a tenth."""


class LoraConfig(Strict):
    """Low-rank adapters through peft (transformers implementation only)."""

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128.0, gt=0)
    modules: list[str] = Field(default_factory=lambda: ["q_proj", "v_proj"])


class ProxyConfig(Strict):
    """The small model the controller is learnt on."""

    model: ModelConfig = ModelConfig(preset="nano")


class ParallelismConfig(Strict):
    """How Ray Train spreads one target run."""

    num_workers: int = Field(default=1, ge=1)
    """Data-parallel workers; must divide tuning.batch_size."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads each worker's torch may use."""
    use_gpu: bool = False
    """One GPU per worker."""


class TargetConfig(Strict):
    """The large model that is tuned for real."""

    model: ModelConfig = ModelConfig(preset="micro")
    lora: LoraConfig | None = None
    """None: full fine-tuning."""
    precision: Literal["fp32", "bf16"] = "fp32"
    parallelism: ParallelismConfig = ParallelismConfig()


class TuningConfig(Strict):
    """One schedule for the proxy, the target and every baseline."""

    stages_per_task: int = Field(default=4, ge=1)
    """Decisions per task."""
    steps_per_stage: int = Field(default=12, ge=1)
    """δ, optimizer steps with one fixed mixture."""
    batch_size: int = Field(default=16, ge=1)
    """Global batch, examples; replay displaces current-task examples."""
    max_length: int = Field(default=64, ge=4)
    """Tokens; a longer prompt is cut from the left, an answer never."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak of each task's cosine."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of a task's steps."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    buffer_size: int = Field(default=64, ge=0)
    """Examples kept of each task for replay once it is over."""
    anchor_buffer_size: int = Field(default=256, ge=0)
    """Examples kept of each anchor, which is broader than a task."""
    validation_size: int = Field(default=16, ge=2)
    """Examples of each source whose loss the controller sees."""


class RewardConfig(Strict):
    """What the controller is learnt for."""

    kind: Literal["paired", "paper"] = "paired"
    """`paired`: at the end, J minus the mean J of reference runs of the same case, over `paired_scale`. `paper`: Eq. 6 at every stage."""
    lambda_: float = Field(default=1.0, ge=0, alias="lambda")
    """Eq. 6, weight of earlier sources' loss rises."""
    beta: float = Field(default=0.5, ge=0)
    """Eq. 6, weight of the safety score."""
    gamma: float = Field(default=1.0, ge=0)
    """Eq. 7, weight of over-refusal."""
    paired_scale: float = Field(default=0.02, gt=0)
    """Accuracy difference worth a reward of 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, serialize_by_alias=True)


class PPOConfig(Strict):
    """RLlib PPO. Defaults suit the equivariant controller and the paired reward (docs/decisions)."""

    learning_rate: float = Field(default=0.04, gt=0)
    num_epochs: int = Field(default=10, ge=1)
    minibatch_size: int | None = Field(default=None, ge=2)
    """None: the full batch."""
    clip: float = Field(default=0.2, gt=0)
    discount: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    entropy_coeff: float = Field(default=0.0, ge=0)
    value_coeff: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)


class CurriculumConfig(Strict):
    """The cases a controller is trained on; none is ever in a table."""

    worlds: list[str] = Field(default_factory=lambda: ["train-0", "train-1", "train-2"])
    """Builtin worlds that task orders are drawn from; ignored when `pool` is given."""
    pool: list[SourceSpec] | None = None
    """Sources that task orders are drawn from, for data of your own."""
    num_tasks: int = Field(default=5, ge=2)
    """Tasks per episode."""
    num_cases: int = Field(default=20, ge=1)
    """Distinct (order, lengths, seed) cases; iteration i trains on case i mod num_cases."""
    length_range: tuple[float, float] = (0.67, 1.5)
    """Each task's steps_per_stage is multiplied by a factor drawn log-uniformly from this range."""


class ControllerConfig(Strict):
    """The policy, how it is learnt, and on what."""

    architecture: Literal["equivariant", "flat"] = "equivariant"
    """`equivariant`: one shared scorer for any number of sources. `flat`: the paper's MLP over a fixed maximum."""
    hidden_units: int = Field(default=0, ge=0)
    """equivariant: tanh units beside the linear features (0: linear). flat: width of both hidden layers (0: the paper's 256)."""
    max_sources: int = Field(default=12, ge=2)
    """Slots of the observation in training (and for ever, when flat): tasks plus anchors."""
    exploration: Literal["per_episode", "per_decision"] = "per_episode"
    """Whether exploration noise is drawn once an episode (state-dependent) or afresh at each decision (the paper)."""
    initial_sigma: float = Field(default=0.6, gt=0)
    """Initial standard deviation of the exploration noise."""
    episodes: int = Field(default=320, ge=1)
    """Proxy runs to learn from."""
    episodes_per_iteration: int = Field(default=16, ge=2)
    """All on one case, so that PPO's standardisation of advantages compares like with like."""
    num_env_runners: int = Field(default=2, ge=0)
    """Ray actors that run proxy episodes; 0: in the trainer's own process."""
    average_last: float = Field(default=1 / 3, gt=0, le=1)
    """The frozen policy is the mean of the parameters over this last share of the iterations."""
    ppo: PPOConfig = PPOConfig()
    reward: RewardConfig = RewardConfig()
    curriculum: CurriculumConfig = CurriculumConfig()


class FallbackConfig(Strict):
    """The mixture used when the controller is away or must not be trusted: uniform over buffers."""

    replay_share: float = Field(default=0.3, ge=0, le=1)


class TransferConfig(Strict):
    """The mirroring check, and the gate it decides."""

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


class ServiceConfig(Strict):
    """Where the frozen controller answers."""

    url: str | None = None
    """An existing service; None: the pipeline deploys one with Ray Serve."""
    host: str = "127.0.0.1"
    port: int = Field(default=8123, ge=1, le=65535)
    num_replicas: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=10.0, gt=0)
    """Per attempt."""
    retries: int = Field(default=4, ge=0)
    """After the first attempt, with exponential back-off and jitter; then the declared fallback."""
    token_env: str | None = None
    """Name of the environment variable with the bearer token; None: no token asked."""


class EvaluationConfig(Strict):
    """How checkpoints are scored while tuning goes on."""

    engine: Literal["vllm", "transformers"] = "vllm"
    actors: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=8, ge=1)
    test_size: int = Field(default=64, ge=1)
    """At most this many test examples per source."""
    kv_cache_mib: int = Field(default=64, ge=1)
    """Memory for vLLM's key-value cache, per actor (CPU engine)."""


class ResourcesConfig(Strict):
    """What the run asks of the machine or cluster."""

    logical_cpus: int | None = Field(default=None, ge=1)
    """Ray CPUs of a cluster started here. May exceed the cores: threads per process are set, so actors may queue on the cores."""
    memory_gib: float = Field(default=2.0, gt=0)
    """Refuse to start with less free memory than this."""


class Config(Strict):
    """One run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    """Seed of the controller's training and of everything shared."""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    """Target seeds; every method runs with each."""
    methods: list[str] = Field(default_factory=lambda: ["proxymix", "no_replay", "random_10", "random_30", "random_50"], min_length=1)
    """Rows of the table."""
    data_root: str | None = None
    """Folder that relative source paths start from."""
    runs_root: str = "runs"
    """Run folders go here."""
    cache_root: str = "runs/.cache"
    """Base models, by content hash."""
    sequence: SequenceConfig
    pretraining: PretrainingConfig = PretrainingConfig()
    proxy: ProxyConfig = ProxyConfig()
    target: TargetConfig = TargetConfig()
    tuning: TuningConfig = TuningConfig()
    controller: ControllerConfig = ControllerConfig()
    transfer: TransferConfig = TransferConfig()
    service: ServiceConfig = ServiceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        workers, batch_size = self.target.parallelism.num_workers, self.tuning.batch_size
        if batch_size % workers:
            raise ValueError(f"target.parallelism.num_workers must divide tuning.batch_size, got {workers} and {batch_size}")
        if self.target.lora and self.target.model.implementation != "transformers":
            raise ValueError("target.lora needs target.model.implementation: transformers")
        per_iteration, runners = self.controller.episodes_per_iteration, max(1, self.controller.num_env_runners)
        if per_iteration % runners:
            raise ValueError(f"controller.num_env_runners must divide controller.episodes_per_iteration, got {runners} and {per_iteration}")
        if self.controller.episodes % per_iteration:
            raise ValueError(f"controller.episodes_per_iteration must divide controller.episodes, got {per_iteration} and {self.controller.episodes}")
        return self

    @property
    def run_dir(self) -> Path:
        """`<runs_root>/<name>`."""
        return Path(self.runs_root) / self.name


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The configuration in `path` with `key.path=value` overrides (values are YAML).

    Raises:
        UserError: the file is missing or no YAML mapping, or a key, type or range is wrong; names the key's path.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config: cannot read {str(path)!r} ({error.strerror}); pass --config with an existing YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"config: {str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: {str(path)!r} must hold a mapping at top level, got {type(tree).__name__}")
    for override in overrides or []:
        _apply_override(tree, override)
    return validated(tree, str(path))


def validated(tree: dict[str, Any], origin: str) -> Config:
    """`tree` as a Config.

    Raises:
        UserError: one line per fault, each with the key's path and the value found.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(str(p) for p in e['loc']) or '(whole)'}: {e['msg']}, got {_short(e['input'])}" for e in error.errors()]
        raise UserError(f"config {origin}:\n" + "\n".join(lines)) from None


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
