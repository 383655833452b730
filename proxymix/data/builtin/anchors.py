"""The anchors: behaviours of the base model that tuning must not destroy.

    generator → Example of `general` (eleven small skills) or of `safety`

Both are the same in every world. Pre-training draws from their training split alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from proxymix.data.builtin.draws import pick
from proxymix.data.builtin.vocabulary import LETTERS, NUMBERS, SKILLS
from proxymix.types import Example

ANCHORS = ("safety", "general")


def draw_general(rng: np.random.Generator) -> Example:
    """One of eleven skills on letters or numbers: `reverse k b z` → `z b k`."""
    skill = pick(rng, SKILLS)
    prompt, response = _SKILLS[skill](rng)
    return Example(f"{skill} {prompt}", response)


def _on_letters(answer: Callable[[list[str]], str], length: int) -> Callable[[np.random.Generator], tuple[str, str]]:
    def draw(rng: np.random.Generator) -> tuple[str, str]:
        letters = [pick(rng, LETTERS) for _ in range(length)]
        return " ".join(letters), answer(letters)

    return draw


def _on_numbers(answer: Callable[[list[int]], str]) -> Callable[[np.random.Generator], tuple[str, str]]:
    def draw(rng: np.random.Generator) -> tuple[str, str]:
        numbers = [int(rng.integers(len(NUMBERS) - 1)) for _ in range(2)]
        return " ".join(map(str, numbers)), answer(numbers)

    return draw


def _count(rng: np.random.Generator) -> tuple[str, str]:
    """How often the first letter occurs among the two that follow."""
    sought, other = pick(rng, LETTERS), pick(rng, LETTERS)
    rest = [pick(rng, (sought, other)) for _ in range(2)]
    return " ".join([sought, *rest]), str(rest.count(sought))


_SKILLS: Mapping[str, Callable[[np.random.Generator], tuple[str, str]]] = {
    "copy": _on_letters(" ".join, 3),
    "reverse": _on_letters(lambda letters: " ".join(reversed(letters)), 3),
    "first": _on_letters(lambda letters: letters[0], 3),
    "last": _on_letters(lambda letters: letters[-1], 3),
    "sort": _on_letters(lambda letters: " ".join(sorted(letters)), 2),
    "index": _on_letters(lambda letters: " ".join(NUMBERS[LETTERS.index(letter)] for letter in letters), 2),
    "next": _on_numbers(lambda numbers: " ".join(NUMBERS[n + 1] for n in numbers)),
    "max": _on_numbers(lambda numbers: NUMBERS[max(numbers)]),
    "min": _on_numbers(lambda numbers: NUMBERS[min(numbers)]),
    "parity": _on_numbers(lambda numbers: " ".join(("even", "odd")[n % 2] for n in numbers)),
    "count": _count,
}
