"""Task scores: how right is an answer. Pure; programs are run in `proxymix.evaluation.sandbox`, refusals told in `proxymix.evaluation.refusal`.

answer, example → the source's scorer → a score in [0, 1], or None where there is nothing to score against
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from proxymix.types import Example, Scorer

_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
_MARKED = re.compile(rf"####[^\w#]*?({_NUMBER.pattern})")
_OPTION = re.compile(r"^\(?([A-Z])\)?(?:[.):,]|$)")
_LETTER = r"[^\w.]{0,9}([A-Z])(?![\w'’]|-\w)"
"""Of an option, perhaps in brackets, quotes or bold."""
_CHOSEN = [
    re.compile(rf"\b(?i:answer|choice|option)(?:\s+is\b|\s*[^\w\s]{{0,9}}:){_LETTER}"),
    re.compile(rf"\b(?i:answer|choice|option|choose|pick|select)\s(?!\s*I\s+(?!is\b)){_LETTER}"),  # "The option I prefer" names none.
    re.compile(rf"^{_LETTER}(?:\s*$|\s*[^\w\s]|(?<![AI])\s)"),
    re.compile(rf"(?:(?<!\bnot)\s|\{{){_LETTER}\W{{0,9}}$"),
    re.compile(rf"^{_LETTER}(?<!I)"),
]
"""How an answer names its option, plainest first. A leading A may be an article and goes last; a leading I, before a word, is the speaker."""


def exact_match(prediction: str, response: str) -> bool:
    """Whether both texts are equal once runs of whitespace count as one space and the ends are trimmed.

    >>> exact_match(" very  negative\\n", "very negative"), exact_match("negative", "very negative")
    (True, False)
    """
    return prediction.split() == response.split()


def choice(prediction: str, response: str) -> bool | None:
    """Whether the option of `response` is chosen: by its letter where it has one ("B", "(B)", "B. blue"), else by its words.

    >>> choice("The answer is (B).", "B. blue"), choice("I choose B", "B"), choice("Positive.", "positive"), choice("C", "B")
    (True, True, True, False)
    """
    if not response.strip():
        return None
    wanted = _OPTION.match(response.strip())
    if wanted is None:
        return _words(prediction) == _words(response)
    chosen = next((found for found in (pattern.search(prediction.strip()) for pattern in _CHOSEN) if found), None)
    return chosen is not None and chosen.group(1) == wanted.group(1)


def numeric(prediction: str, response: str) -> bool | None:
    """Whether both give the same number: the first after `####` where there is one (as GSM8K has it), else the last; thousands may have commas.

    >>> numeric("so 1,200 + 34 = 1,234.", "#### 1234"), numeric("#### 5 dollars, then 6", "#### 5"), numeric("5", "five")
    (True, True, None)
    """
    wanted, given = _number(response), _number(prediction)
    return None if wanted is None else given == wanted


def rouge_l(prediction: str, response: str) -> float | None:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, case aside, without stemming; in [0, 1].

    >>> rouge_l("the cat sat", "The cat lay down."), rouge_l("", "a word"), rouge_l("word", "...")
    (0.5714285714285714, 0.0, None)
    """
    given, wanted = _words(prediction), _words(response)
    if not wanted:
        return None
    lengths = [0] * (len(wanted) + 1)  # Of the longest common subsequence with the first words of `wanted`.
    for word in given:
        before = lengths.copy()
        for place, other in enumerate(wanted, start=1):
            lengths[place] = before[place - 1] + 1 if word == other else max(before[place], lengths[place - 1])
    return 2 * lengths[-1] / (len(given) + len(wanted))


TEXT_SCORERS: dict[Scorer, Callable[[str, str], float | bool | None]] = {
    "exact_match": exact_match,
    "choice": choice,
    "numeric": numeric,
    "rouge_l": rouge_l,
}
"""What two texts are compared by."""


def accuracy(predictions: Sequence[str], examples: Sequence[Example]) -> float:
    """Share of exact matches, in [0, 1].

    Args:
        predictions: generated answers, in the order of `examples`.
        examples: what was asked and expected.

    Raises:
        ValueError: the two differ in length, or there is nothing to score (which is not an accuracy of 0).
    """
    if len(predictions) != len(examples) or not examples:
        raise ValueError(f"predictions must match a non-empty list of examples one to one, got {len(predictions)} and {len(examples)}")
    return sum(exact_match(prediction, example.response) for prediction, example in zip(predictions, examples, strict=True)) / len(examples)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _number(text: str) -> Decimal | None:
    marked = _MARKED.search(text)  # A heading ("#### Step 1") is no answer.
    if marked:
        found = [marked.group(1)]
    elif "####" in text:
        found = _NUMBER.findall(text.rpartition("####")[2])[:1]
    else:
        found = _NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "")) if found else None
    except InvalidOperation:
        return None
