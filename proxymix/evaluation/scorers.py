"""Task scores: is an answer the expected one, to the word.

predictions, examples → exact_match each → accuracy in [0, 1]
"""

from __future__ import annotations

from collections.abc import Sequence

from proxymix.types import Example


def exact_match(prediction: str, response: str) -> bool:
    """Whether both texts are equal once runs of whitespace count as one space and the ends are trimmed.

    >>> exact_match(" very  negative\\n", "very negative"), exact_match("negative", "very negative")
    (True, False)
    """
    return prediction.split() == response.split()


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
