"""One evaluation actor: an engine that is loaded once and given one set of weights after another.

checkpoint folder → Generator.load → answers like the trainer's model? → greedy answers to the test rows of every source → scores
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.evaluation.generation import Generator, TransformersGenerator, generate_answers
from proxymix.evaluation.judge import HttpJudge
from proxymix.evaluation.scoring import checkpoint_scores, no_scores
from proxymix.evaluation.verification import TOLERANCE, Fingerprint, StaleWeightsError
from proxymix.learners.models import load_tokenizer
from proxymix.types import Source

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # The engine lives in the actor's process: up in seconds, and gone when the actor is.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Else it takes every core, which tuning needs.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Of an actor's process, set before anything is imported."""


class EvaluationActor:
    """One engine, loaded once, and the test rows of every source."""

    def __init__(self, config: Config, base_folder: str, sources: Sequence[Source]) -> None:
        """Cheap; the engine comes with `warm_up`, so that a failure is told by a call and not by the actor's death."""
        self.config, self.base_folder, self.sources = config, base_folder, sources
        self.generator: Generator | None = None

    def warm_up(self) -> float:
        """Builds the engine from the base model; later calls cost nothing. Returns the seconds it took, imports included."""
        started = time.perf_counter()
        if self.generator is None:
            self._build(self.base_folder)
        return time.perf_counter() - started

    def score(self, folder: str) -> dict[str, Any]:
        """Scores of the model in `folder` on every source, what they took in seconds, and whether its weights were verified.

        An actor that has no engine yet builds it from `folder`; for adapters from the base, whose weights they leave as they are.

        Raises:
            StaleWeightsError: an engine that was there before does not answer as the model that was saved; another must be built.
        """
        started, fresh = time.perf_counter(), self.generator is None
        lora = self.config.target.lora
        adapters = lora is not None and not lora.merged
        try:
            generator = self.generator or self._build(self.base_folder if adapters else folder)
            if adapters or not fresh:
                generator.load(folder)
        except UserError as error:
            if folder == self.base_folder:
                raise
            raise RuntimeError(str(error)) from error  # A checkpoint is of our own making: the others can be scored all the same.
        weights, fault = self._verified(generator, folder)
        told = {"weights": {**weights, "rebuilt": fresh}, "actor": f"{socket.gethostname()}/{os.getpid()}"}
        if fault is not None and not fresh:
            raise StaleWeightsError(fault)
        if fault is not None:
            return {**no_scores(self.sources, f"{fault}, with an engine built from it"), **told}
        loaded = time.perf_counter()
        rows = [row for source in self.sources for row in source.test]
        settings = self.config.evaluation
        answers, ends = map(iter, generate_answers(generator, self.tokenizer, rows, self.config.tuning.max_length, settings.max_new_tokens))
        by_source = {source.name: [next(answers) for _ in source.test] for source in self.sources}
        cut = {source.name: [next(ends) for _ in source.test] for source in self.sources}
        judge = HttpJudge(settings.judge) if settings.judge else None
        scores = checkpoint_scores(self.sources, by_source, self.config.controller.reward.gamma, code=settings.code, judge=judge, cut=cut)
        seconds = {"reload": round(loaded - started, 4), "generate": round(time.perf_counter() - loaded, 4)}
        return {**scores, "seconds": seconds, **told}

    def _build(self, folder: str) -> Generator:
        self.tokenizer = load_tokenizer(self.base_folder, self.config.target.model.chat_template)
        self.generator = generator = generator_class(self.config.evaluation.engine)(folder, self.config, self.tokenizer)
        return generator

    def _verified(self, generator: Generator, folder: str) -> tuple[dict[str, Any], str | None]:
        """What is known of the engine's weights, and what is wrong with them. The base and older checkpoints have no fingerprint: unverified."""
        fingerprint = None if folder == self.base_folder else Fingerprint.read(folder)
        if fingerprint is None:
            return {"verified": False, "difference": None}, None
        difference, tolerance = fingerprint.difference(generator), TOLERANCE[self.config.target.precision]
        told = {"verified": difference <= tolerance, "difference": round(difference, 7) if math.isfinite(difference) else None}
        wrong = f"answers differ from those of the model that was saved by {difference:.3g} nats, more than {tolerance:g}"
        return told, None if difference <= tolerance else wrong


def generator_class(engine: str) -> Callable[..., Generator]:
    """What `evaluation.engine` names.

    Raises:
        UserError: it cannot be imported here, or a library that it stands on is missing.
    """
    if engine == "transformers":
        return TransformersGenerator
    try:
        from cluster.vllm_engine import VllmGenerator, check_kernels

        check_kernels()
    except ImportError as error:
        raise UserError(
            f"evaluation.engine: vllm cannot be imported ({error}); install what is missing or set evaluation.engine=transformers"
        ) from error
    return VllmGenerator
