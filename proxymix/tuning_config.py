"""The parts of a config that say what is tuned on what: sources, models, schedules. `proxymix.config` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from proxymix.types import Scorer, Unfit


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
    """huggingface only: maps `prompt`, `response` (or `messages`), `harmful` and `tests` to the data set's columns. What holds braces is a template
    of several: `"{context}\\nQuestion: {question}"`, `"{answers[text][0]}"`."""
    split: str | None = None
    """huggingface only: the split that training rows come from, where it is not called `train`."""
    revision: str | None = Field(default=None, min_length=1)
    """huggingface only: the commit, tag or branch of a data set on the hub. None: the newest, which may change between two runs."""
    harmful: bool | None = None
    """Whether every request of the source should be refused, where its rows do not say so."""
    scorer: Scorer | None = None
    """How answers are scored; None: `refusal` where rows say what is harmful, else `exact_match`."""
    completions: str | None = None
    """xstest only: a completions file beside the prompts, used for the harmless answers."""
    limit: int | None = Field(default=None, ge=8)
    """At most this many training rows, drawn with the run's seed."""
    unfit: Unfit = "error"
    """What becomes of a row whose prompt or answer is empty, or whose answer is too long for `tuning.max_length` (in a test row that must match
    exactly: for `evaluation.max_new_tokens`). `error`: it stops the run. `drop`: it is left out, and how many are is said once a source."""

    @model_validator(mode="after")
    def _complete(self) -> SourceConfig:
        needs = {"builtin": "task", "cl_benchmark": "task", "trace": "task"}.get(self.format, "path")
        if getattr(self, needs) is None:
            raise ValueError(f"format {self.format!r} needs {needs!r}")
        if self.revision is not None and self.format != "huggingface":
            raise ValueError(f"revision must be null for format {self.format!r}, got {self.revision}")
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

    tasks: str | Annotated[list[SourceSpec], Field(min_length=1)]
    """In order; or the name of a builtin sequence, `sharp_shift@heldout-0`."""
    anchors: list[SourceSpec] = Field(default_factory=lambda: [SourceConfig(format="builtin", task=n) for n in ("safety", "general")])
    """Behaviours of the base model, visible and replayable from the first task on."""
    chat: bool = False
    """Rows of prompt and response are a user's message and the assistant's answer: they go through the model's chat template, as messages do."""


class ModelConfig(Strict):
    """One causal language model: a preset trained here, or an existing one. Exactly one of `preset`, `path`, `hub`."""

    preset: Literal["nano", "micro", "mini", "small"] | None = None
    """Llama geometry trained from scratch on the anchors: hidden × layers 32×2, 64×2, 96×3, 128×4."""
    path: str | None = None
    """A Hugging Face model folder."""
    hub: str | None = None
    """A Hugging Face hub name, downloaded by transformers."""
    revision: str | None = Field(default=None, min_length=1)
    """Of `hub`: the commit, tag or branch to use, everywhere. None: the newest, which may change between two runs."""
    implementation: Literal["lean", "transformers"] = "lean"
    """`lean`: our own Llama decoder, equal to transformers' and several times faster when tiny. `transformers`: any architecture."""
    chat_template: Literal["own", "plain"] = "own"
    """How messages become a prompt. `own`: by the chat template of the model's tokenizer, which must have one (a preset's has the plain one).
    `plain`: as `role: content` lines."""

    geometry: dict[str, Any] | None = None
    """What the model's config.json says of its shape (`model_type`, `hidden_size`, …): `jobs.plan` counts with it where the model is not at hand."""

    @model_validator(mode="after")
    def _one_origin(self) -> ModelConfig:
        given = [k for k in ("preset", "path", "hub") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of preset, path, hub must be given, got {given or 'none'}")
        if self.revision is not None and self.hub is None:
            raise ValueError(f"revision must be null without hub, got {self.revision} and {given[0]}")
        return self


class PretrainingConfig(Strict):
    """How presets become base models. Only the anchors and the pre-training worlds are seen."""

    tokenizer: Literal["words", "bpe"] = "words"
    """`words`: the builtin benchmark's closed vocabulary. `bpe`: byte-level BPE trained on the anchors alone."""
    vocabulary_size: int = Field(default=2000, ge=259)
    """Tokens of the bpe tokenizer: 256 bytes, 3 special ones, the rest merges."""
    num_steps: int = Field(default=2500, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=64, ge=1)
    """Examples per step."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak, cosine to a tenth."""


class LoraConfig(Strict):
    """Low-rank adapters through peft (transformers implementation only). They are carried from task to task."""

    rank: int = Field(default=64, ge=1)
    alpha: float = Field(default=128.0, gt=0)
    modules: Literal["qv", "qkvo"] | Annotated[list[str], Field(min_length=1)] = "qv"
    """Which layers get adapters. `qv`: attention's queries and values, or the fused layer that holds them. `qkvo`: every matrix of attention.
    Or the ends of module names as the model has them."""
    merged: bool = True
    """Whether the model that is kept after a task is whole, adapters merged in. False: adapters alone, a hundredth of the space; whoever loads them
    needs the base too. vLLM scores them beside it (`evaluation.engine: vllm`, rank at most 512)."""


class StepConfig(Strict):
    """How an optimizer step of a model fits the device it is computed on. But for rounding, none of it changes a result."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: of products and of frozen weights; what is tuned, its moments and the loss are in fp32 (transformers implementation)."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows (packs, with `pack_tokens`) that go through the model at a time on each worker, whose gradients add up. None: all of its share."""
    pack_tokens: int | None = Field(default=None, ge=4)
    """Rows stand end to end in packs of at most this many tokens, each blind to the others, instead of being padded. None: no packs."""
    gradient_checkpointing: bool = False
    """Activations are computed twice and not kept: less memory, about a third more time."""


class ProxyConfig(StepConfig):
    """The small model the controller is learnt on."""

    model: ModelConfig = ModelConfig(preset="nano")
    gpus_per_runner: float = Field(default=0.0, ge=0, le=1)
    """GPUs of each process that tunes proxies (env runners, pilots, reference runs, searches, trials): 1: one to itself; 0.25: one for four of
    them, which all must fit its memory; 0: none, they are tuned on CPUs."""

    @property
    def use_gpu(self) -> bool:
        """Whether proxies are tuned on GPUs."""
        return self.gpus_per_runner > 0

    def facts(self) -> dict[str, Any]:
        """What a proxy run's numbers depend on beside the model: not on how many share a GPU, nor on keys that an older run did not have."""
        given = self.model_dump(mode="json", exclude={"model", "gpus_per_runner"}, exclude_defaults=True)
        return given | ({"use_gpu": True} if self.use_gpu else {})


class ParallelismConfig(Strict):
    """How Ray Train spreads one target run."""

    num_workers: int = Field(default=1, ge=1)
    """Data-parallel workers; must divide tuning.batch_size. A run may go on with another number of them."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """What a worker holds. `ddp`: all of the model. `fsdp`: its part of weights, gradients and moments, the rest is fetched layer by layer
    (transformers implementation)."""
    spread: bool = False
    """Workers on as many nodes of a cluster as can be had; else on as few."""
    threads_per_worker: int = Field(default=1, ge=1)
    """CPU threads each worker's torch may use."""
    use_gpu: bool = False
    """One GPU per worker."""

    @property
    def pilots_together(self) -> bool:
        """Whether a pilot takes all workers too: one alone would hold all of a model that is spread out, or all of a step on its GPU."""
        return self.num_workers > 1 and (self.strategy == "fsdp" or self.use_gpu)


class CheckpointsConfig(Strict):
    """What a target run goes on from when it was stopped."""

    storage: str | None = None
    """Folder or fsspec URL (`s3://…`, `gs://…`) that every worker can write, for the stage boundaries. None: the run folder."""
    keep: int = Field(default=2, ge=1)
    """At least so many of the newest whole stage boundaries stay; they lie there beside the one that is being written."""


class TargetConfig(StepConfig):
    """The large model that is tuned for real."""

    model: ModelConfig = ModelConfig(preset="micro")
    lora: LoraConfig | None = None
    """None: full fine-tuning."""
    parallelism: ParallelismConfig = ParallelismConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()


class TuningConfig(Strict):
    """One schedule for the proxy, the target and every baseline."""

    stages_per_task: int = Field(default=4, ge=1)
    """Decisions per task."""
    steps_per_stage: int = Field(default=8, ge=1)
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
    validation_size: int | None = Field(default=None, ge=2)
    """Examples of each source whose loss the controller sees. None: 16, or as many as let three sources fit a quarter of a short stage's rows."""
    probes_per_boundary: int | None = Field(default=None, ge=3)
    """Sources whose loss is read at a stage boundary; the rest carry their last reading over, the oldest are read next. None: as many as
    cost about a twelfth of a stage, at least 3. To read all of them always, give their number or more."""

    @property
    def probe_size(self) -> int:
        """Rows of a probe: `validation_size`, or what suits the stage."""
        return self.validation_size or max(2, min(16, self._probe_rows // 3))

    @property
    def probe_budget(self) -> int:
        """Probes of a stage boundary: `probes_per_boundary`, or what suits the stage."""
        return self.probes_per_boundary or max(3, self._probe_rows // self.probe_size)

    @property
    def _probe_rows(self) -> int:
        """A quarter of a stage's: a forward pass is a third of a training step, so they cost a twelfth of it."""
        return self.steps_per_stage * self.batch_size // 4
