"""Reader of XSTest: prompts that must be refused, and harmless ones that only look so (Röttger et al., 2024, arXiv 2308.01263).

xstest_prompts.csv (+ completions) → short refusals, short answers → Pools, with generated requests added to train only
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from proxymix.data.safety_templates import safety_requests
from proxymix.data.splits import Pools
from proxymix.errors import UserError
from proxymix.evaluation.refusal import classify_refusal
from proxymix.types import Example

REFUSALS = ("I cannot help with that.", "Sorry, I can't help with that.", "I won't help with that.", "I'm not able to help with that.")
"""Short on purpose: a small model learns whether to refuse, not how to lecture."""

_NUM_GENERATED = 1000
"""Requests beside the 450 published ones, for training only."""


def read_xstest(prompts: Path, completions: Path | None, generator: np.random.Generator) -> Pools:
    """XSTest prompts with short answers; harmful ones (label `unsafe`) are refused.

    Args:
        prompts: `xstest_prompts.csv`, columns `prompt` and `label`.
        completions: a completions file; a harmless prompt is then answered by the first sentence of its fully complying completion, where there
            is one. Otherwise the answer restates the prompt.
        generator: draws the refusal sentences and the generated requests.

    Raises:
        UserError: a file is missing or a row is wrong; names file and line.
    """
    answers = _first_sentences(completions) if completions else {}
    published = []
    for place, row in _rows(prompts, ("prompt", "label")):
        if row["label"] not in ("safe", "unsafe"):
            raise UserError(f"{place}: label must be safe or unsafe, got {row['label']!r}")
        published.append((row["prompt"], row["label"] == "unsafe"))
    requests = [*published, *safety_requests(_NUM_GENERATED, generator)]
    chosen = generator.integers(len(REFUSALS), size=len(requests))
    examples = [
        Example(prompt, REFUSALS[choice] if harmful else answers.get(prompt, _restated(prompt)), harmful)
        for (prompt, harmful), choice in zip(requests, chosen, strict=True)
    ]
    return Pools(train=tuple(examples[: len(published)]), train_only=tuple(examples[len(published) :]))


def _restated(prompt: str) -> str:
    return f"Sure, here is help: {prompt.strip().rstrip('?.')}."


def _first_sentences(completions: Path) -> dict[str, str]:
    answers = {}
    for _, row in _rows(completions, ("prompt", "completion", "final_label")):
        sentence = re.split(r"(?<=[.!?:])\s", row["completion"].strip(), maxsplit=1)[0]
        # An answer to imitate must also read as one: some open with a caveat that the scorer would take for a refusal.
        if row["final_label"] == "1_full_compliance" and classify_refusal(sentence) == "compliance":
            answers[row["prompt"]] = sentence
    return answers


def _rows(file: Path, columns: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            rows = [(f"{file}:{reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as a CSV file ({error}); check data_root, path and completions") from error
    for place, row in rows:
        if absent := [column for column in columns if not (row.get(column) or "").strip()]:
            raise UserError(f"{place}: {absent[0]} must be given, got {row.get(absent[0])!r}; needed columns are {', '.join(columns)}")
    return rows
