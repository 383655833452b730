"""The mirroring study as a table for people.

mirroring_study.json → study_markdown → table.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = ("pair", "learning rate", "ρ [95 %]", "p", "ceiling", "age held fixed", "another order", "lowest sequence", "highest")


def study_markdown(study: Mapping[str, Any]) -> str:
    """One row a pair and learning rate."""
    num_sequences, num_seeds = len(study["sequences"]), study["num_seeds"]
    how = (
        f"{num_sequences} sequences × {num_seeds} seeds, uniform replay {study['replay_share']:.0%}; Spearman's ρ between the relative forgetting of "
        "proxy and target, mean over sequences and seeds; 95 % hierarchical bootstrap (sequences, then seeds); p by permutation within sequences; "
        "ceiling: the target with itself under another seed; age held fixed: partial ρ given j − i; another order: the null, the proxy's forgetting "
        "on another sequence."
    )
    lines = [
        how,
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
    ]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(result))} |" for result in study["results"])]) + "\n"


def _cells(result: Mapping[str, Any]) -> list[str]:
    low, high = result["interval"]
    sequences = result["per_sequence"].values()
    return [
        f"{result['proxy']} → {result['target']}",
        f"{result['learning_rate']:g} (×{result['rate']:g})",
        f"**{_number(result['rho'])}** [{_number(low)}, {_number(high)}]",
        f"{result['p_value']:.4f}",
        *(_number(result[key]) for key in ("ceiling", "partial_rho", "null_rho")),
        *(_number(value) for value in (min(sequences), max(sequences))),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
