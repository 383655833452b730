"""Cases: a drawn order of tasks with lengths and a seed. What a controller is trained on, and what pilots are run on.

curriculum + seed → Case → CaseBuilder → ContinualRun on a base model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal
from zlib import crc32

import numpy as np

from proxymix.config import Config, CurriculumConfig, SourceConfig, TuningConfig
from proxymix.continual import ContinualRun
from proxymix.data.encoded_cache import encoded_source
from proxymix.data.encoding import EncodedSource, EncodedSplit, encode_split, fitting_tests
from proxymix.data.sources import configured_source
from proxymix.errors import UserError
from proxymix.learners.device import tuning_device
from proxymix.learners.interface import ResumableLearner
from proxymix.learners.large import LargeLearner
from proxymix.learners.learner import Learner
from proxymix.learners.models import TransformersModel, check_window, load_model, load_tokenizer
from proxymix.types import Source


@dataclass(frozen=True)
class Case:
    """One continual run, before anyone has chosen its mixtures."""

    name: str
    tasks: tuple[SourceConfig, ...]
    steps_per_stage: tuple[int, ...]
    """Per task."""
    seed: int
    """Of the data stream."""
    reference_scores: tuple[float, ...] = ()
    """J of the reference controllers on this very case; for the paired reward."""
    reference_step_s: float | None = field(default=None, repr=False, compare=False)
    """Seconds per optimizer step of those runs, one proxy at a time, validation included. A measurement: no part of what the case is."""

    def num_optimizer_steps(self, tuning: TuningConfig) -> int:
        """Of a whole run."""
        return tuning.stages_per_task * sum(self.steps_per_stage)


def draw_cases(curriculum: CurriculumConfig, tuning: TuningConfig, num_cases: int, seed: int, label: str = "case") -> list[Case]:
    """`num_cases` random orders with random lengths, the same for the same seed.

    A case's tasks come from one builtin world, or from `curriculum.pool`.
    """
    from proxymix.data.builtin import random_order

    cases = []
    for index in range(num_cases):
        rng = np.random.default_rng([seed, index, crc32(label.encode())])
        fixed = curriculum.num_tasks
        num_tasks = fixed if isinstance(fixed, int) else int(rng.integers(fixed[0], fixed[1], endpoint=True))
        if curriculum.pool:
            chosen = rng.permutation(len(curriculum.pool))[:num_tasks]
            tasks = tuple(curriculum.pool[i] for i in chosen)
        else:
            order = random_order(rng, num_tasks, curriculum.worlds)
            tasks = tuple(builtin_source(spec) for spec in order)
        low, high = np.log(curriculum.length_range)
        factors = np.exp(rng.uniform(low, high, size=len(tasks)))
        steps = tuple(max(1, round(tuning.steps_per_stage * float(factor))) for factor in factors)
        cases.append(Case(f"{label}{index}", tasks, steps, int(rng.integers(2**31))))
    return cases


def builtin_source(spec: str) -> SourceConfig:
    """`"cipher@train-0"` as a source."""
    task, _, world = spec.partition("@")
    return SourceConfig(format="builtin", task=task, world=world or None)


def sequence_tasks(config: Config) -> tuple[SourceConfig, ...]:
    """The sequence of the run: a builtin name resolved, or the list as given."""
    from proxymix.data.builtin import named_sequence

    tasks = config.sequence.tasks
    return tuple(builtin_source(spec) for spec in named_sequence(tasks)) if isinstance(tasks, str) else tuple(tasks)


def load_sources(config: Config) -> list[Source]:
    """Every source of the configured sequence: anchors, then tasks, with all their splits.

    Raises:
        UserError: data is missing or malformed, or two sources share a name.
    """
    specs = [*config.sequence.anchors, *sequence_tasks(config)]
    labels = [spec.label for spec in specs]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise UserError(f"sequence: source names must be unique, got {', '.join(repeated)} more than once; give one of them a name")
    controller = config.controller
    if controller.architecture == "flat" and len(specs) > controller.max_sources:
        raise UserError(f"controller.max_sources: a flat controller must hold the {len(specs)} sources of the sequence, got {controller.max_sources}")
    for spec in controller.curriculum.pool or []:
        configured_source(config, spec)  # Loaded again where it is used; here only to be found wrong now and not hours later.
    return [configured_source(config, spec) for spec in specs]


class CaseBuilder:
    """Builds runs on one base model; the learner and every encoded source are made once and kept."""

    def __init__(self, config: Config, base_folder: str, learner: ResumableLearner, chat_template: Literal["own", "plain"] = "own") -> None:
        """Nothing is encoded yet.

        Args:
            config: of the run.
            base_folder: holds the model that every run starts from, and its tokenizer.
            learner: stands at that model.
            chat_template: as in `ModelConfig`.

        Raises:
            UserError: the tokenizer lacks an end token, or `tuning.max_length` is more than the model can read.
        """
        self.config, self.learner = config, learner
        check_window(base_folder, config.tuning.max_length)
        self.tokenizer = load_tokenizer(base_folder, chat_template)
        self.source = lru_cache(maxsize=256)(self._source)
        self.test = lru_cache(maxsize=256)(self._test)

    def build(self, case: Case) -> ContinualRun:
        """A run at its first boundary, the learner back at the base model."""
        self.learner.restore_base()
        tasks = [self.source(spec) for spec in case.tasks]
        return ContinualRun(tasks, self.anchors, self.learner, self.config.tuning, case.seed, steps_per_stage=case.steps_per_stage, name=case.name)

    @property
    def anchors(self) -> Sequence[EncodedSource]:
        """The anchors of the configured sequence."""
        return [self.source(spec) for spec in self.config.sequence.anchors]

    def _source(self, spec: SourceConfig) -> EncodedSource:
        return encoded_source(self.config, spec, self.tokenizer)

    def _test(self, spec: SourceConfig) -> tuple[EncodedSplit, tuple[bool, ...] | None]:
        """The test rows, which no run holds, and which of them are harmful requests (None: no safety source). For scoring alone."""
        max_length = self.config.tuning.max_length
        source = fitting_tests(configured_source(self.config, spec), self.tokenizer, max_length)
        harmful = tuple(bool(row.harmful) for row in source.test) if source.scorer == "refusal" else None
        return encode_split(source.test, self.tokenizer, max_length), harmful


def proxy_builder(config: Config, base_folder: str, num_replicas: int = 1) -> CaseBuilder:
    """Builds runs of the proxy, `num_replicas` of which can go side by side, on the GPU this process was given if proxies are to use one.

    The target's builder knows of ranks too: `cluster.tuning.target_builder`.

    Raises:
        UserError: a GPU is to be used and torch sees none.
    """
    proxy = config.proxy
    device = tuning_device(proxy.use_gpu, "proxy.gpus_per_runner", "0")
    model = load_model(base_folder, proxy.model.implementation, precision=proxy.precision, num_replicas=num_replicas).to(device)
    learner = LargeLearner(model, config.tuning, proxy) if isinstance(model, TransformersModel) else Learner(model, config.tuning)
    return CaseBuilder(config, base_folder, learner, proxy.model.chat_template)
