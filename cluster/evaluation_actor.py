"""One evaluation actor: an engine that is loaded once and given one set of weights after another.

checkpoint folder → Generator.load → greedy answers to the test rows of every source → scores
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from proxymix.config import Config
from proxymix.errors import UserError
from proxymix.evaluation.generation import Generator, TransformersGenerator, generate_answers
from proxymix.evaluation.judge import HttpJudge
from proxymix.evaluation.scoring import checkpoint_scores
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
            self.tokenizer = load_tokenizer(self.base_folder, self.config.target.model.chat_template)
            self.generator = _generator_class(self.config.evaluation.engine)(self.base_folder, self.config, self.tokenizer)
        return time.perf_counter() - started

    def score(self, folder: str) -> dict[str, Any]:
        """Scores of the model in `folder` on every source, and what they took in seconds."""
        self.warm_up()
        assert self.generator is not None
        started = time.perf_counter()
        self.generator.load(folder)
        loaded = time.perf_counter()
        rows = [row for source in self.sources for row in source.test]
        answers = iter(generate_answers(self.generator, self.tokenizer, rows, self.config.tuning.max_length))
        by_source = {source.name: [next(answers) for _ in source.test] for source in self.sources}
        settings = self.config.evaluation
        judge = HttpJudge(settings.judge) if settings.judge else None
        scores = checkpoint_scores(self.sources, by_source, self.config.controller.reward.gamma, code=settings.code, judge=judge)
        seconds = {"reload": round(loaded - started, 4), "generate": round(time.perf_counter() - loaded, 4)}
        return {**scores, "seconds": seconds, "actor": f"{socket.gethostname()}/{os.getpid()}"}


def _generator_class(engine: str) -> Callable[..., Generator]:
    if engine == "transformers":
        return TransformersGenerator
    try:
        from cluster.vllm_engine import VllmGenerator
    except ImportError as error:
        raise UserError(f"evaluation.engine: vllm cannot be imported ({error}); install it or set evaluation.engine=transformers") from error
    return VllmGenerator
