"""Greedy answers to the test prompts, by whatever engine holds the model.

    examples → prompt tokens, cut exactly as in tuning → Generator (transformers here, vLLM in `cluster.vllm_engine`) → answer texts

Engines see tokens only, so that the model is asked exactly as it was tuned, and two engines can be compared token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from proxymix.config import Config
from proxymix.data.encoding import example_ids, fitting_tests
from proxymix.errors import UserError
from proxymix.learners.models import load_causal
from proxymix.types import Example, Source

Tokens = list[int]


class Generator(Protocol):
    """A model that answers greedily and can be given other weights of the same architecture."""

    def load(self, folder: str) -> None:
        """The weights in `folder` from now on. After an exception the engine is unusable."""
        ...

    def generate(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        """One answer per prompt: at most `evaluation.max_new_tokens` tokens, without the end token."""
        ...

    def log_probabilities(self, rows: Sequence[Tokens]) -> list[list[float]]:
        """Of every token but the first of its row, given those before it, nats."""
        ...


class TransformersGenerator:
    """Batched `generate` of transformers: any architecture, no start-up cost; in small models no slower than vLLM (docs/performance.md)."""

    batch_size = 64
    """Prompts of similar length that go together."""

    def __init__(self, base_folder: str, config: Config, tokenizer: Any) -> None:
        """Args: `base_folder` is a model folder or `reference`; `tokenizer` supplies the end and pad tokens."""
        from transformers import GenerationConfig

        self.precision = torch.bfloat16 if config.target.precision == "bf16" else torch.float32
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=config.evaluation.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
        self.load(base_folder)

    def load(self, folder: str) -> None:
        """The model in `folder`, read anew."""
        self.model = load_causal(folder, self.precision).to(self.device).eval()
        # A published model's own sampling defaults (penalties, temperatures) would fill whatever the settings leave open.
        self.model.generation_config = self.settings

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        """Left-padded batches, longest prompts first."""
        answers: list[Tokens] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            width = len(prompts[chosen[0]])
            input_ids = torch.full((len(chosen), width), int(self.settings.pad_token_id), device=self.device)
            mask = torch.zeros_like(input_ids)
            for row, index in enumerate(chosen):
                input_ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index], device=self.device)
                mask[row, width - len(prompts[index]) :] = 1
            output = self.model.generate(input_ids=input_ids, attention_mask=mask, generation_config=self.settings)
            for index, tokens in zip(chosen, output[:, width:].tolist(), strict=True):
                answers[index] = until(tokens, int(self.settings.eos_token_id))
        return answers

    @torch.inference_mode()
    def log_probabilities(self, rows: Sequence[Tokens]) -> list[list[float]]:
        """Row by row; there are few."""
        found = []
        for row in rows:
            tokens = torch.tensor([row], device=self.device)
            scores = self.model(tokens).logits[0, :-1].float().log_softmax(-1)
            found.append(scores.gather(1, tokens[0, 1:, None])[:, 0].tolist())
        return found


def until(tokens: Tokens, end: int) -> Tokens:
    """`tokens` before the first `end`.

    >>> until([7, 8, 2, 0, 0], 2), until([7, 8], 2)
    ([7, 8], [7, 8])
    """
    return tokens[: tokens.index(end)] if end in tokens else tokens


def answer_length(example: Example, tokenizer: Any) -> int:
    """Tokens of the right answer, its end token included."""
    return len(example_ids(example, tokenizer)[1])


def askable(config: Config, sources: Sequence[Source], tokenizer: Any) -> list[Source]:
    """The sources with their test rows alone: those that can be asked as the model is tuned, and answered.

    Raises:
        UserError: of `check_answers_fit`, or too few rows of a source that drops the others are left.
    """
    room, answer = config.tuning.max_length, config.evaluation.max_new_tokens
    tests = [fitting_tests(source, tokenizer, room, answer if source.scorer == "exact_match" else None) for source in sources]
    check_answers_fit(config, tests, tokenizer)
    return tests


def check_answers_fit(config: Config, sources: Sequence[Source], tokenizer: Any) -> None:
    """Makes sure that every right answer can be given at all. A refusal is known by its first words, so it need not be complete.

    Raises:
        UserError: `evaluation.max_new_tokens` cuts the right answer to an exact-match test row.
    """
    for source in sources:
        if source.scorer == "exact_match" and source.test:
            longest = max(answer_length(row, tokenizer) for row in source.test)
            if longest > config.evaluation.max_new_tokens:
                raise UserError(
                    f"evaluation.max_new_tokens: must hold the longest test answer of {source.name} ({longest} tokens), "
                    f"got {config.evaluation.max_new_tokens}; raise it"
                )


def generate_answers(
    generator: Generator, tokenizer: Any, examples: Sequence[Example], max_length: int, max_new_tokens: int
) -> tuple[list[str], list[bool]]:
    """What the model answers to each prompt, without surrounding white space, and whether the answer was cut before it came to an end.

    Args:
        generator: holds the model.
        tokenizer: the model's.
        examples: their prompts are asked.
        max_length: `tuning.max_length`. A prompt is cut from the left to what tuning would have left of it beside the row's own answer:
            the only thing that responses are looked at for.
        max_new_tokens: what the generator cuts answers to.
    """
    rows = [example_ids(example, tokenizer) for example in examples]
    answers = generator.generate([prompt[-max(1, max_length - len(answer)) :] for prompt, answer in rows])
    # Tuning sets the answer off from the prompt by one space, so a byte-level answer starts with it.
    texts = [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answers]
    return texts, [len(tokens) >= max_new_tokens for tokens in answers]
