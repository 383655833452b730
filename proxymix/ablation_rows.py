"""What the rows of the ablation mean: the config a variant is learnt with, the noise it is shown, its title.

row → trained_as(config, row) → Config, or None: the row uses the full controller, otherwise
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxymix.ablation_config import FULL
from proxymix.config import Config, validated
from proxymix.errors import UserError
from proxymix.table import method_title

TITLES = {
    FULL: "Full controller",
    "without_normalisation": "Raw losses, not normalised",
    "no_safety_reward": "Safety not rewarded",
    "mean_schedule": "Its mean schedule, open loop",
    "mean_share": "Its mean share, constant",
    "flat": "Flat MLP for the equivariant scorer",
}
PATTERNS = (
    (r"without_(\w+)", "Without {}"),
    (r"cadence_(\d+)", "Decides every {} stages"),
    (r"noisy_(\d+)", "Readings with {} % noise"),
    (r"proxy_(\w+)", "Learnt on {}"),
)


def row_title(row: str) -> str:
    """A row as people read it.

    >>> [row_title(row) for row in ("full", "without_trend", "cadence_2", "random_30")]
    ['Full controller', 'Without trend', 'Decides every 2 stages', 'Random 30\\xa0%']
    """
    if row in TITLES:
        return TITLES[row]
    found = (title.format(match[1]) for pattern, title in PATTERNS if (match := re.fullmatch(pattern, row)))
    return next(found, method_title(row))


def trained_as(config: Config, row: str) -> Config | None:
    """The config that the controller of `row` is learnt with; None where it is the full one.

    Raises:
        UserError: this config has no such variant, as a flat controller has no group that it never had.
    """
    kind, _, value = row.partition("_")
    change: Mapping[str, Any] | None = None
    if row == "no_safety_reward":
        change = {"reward": {"safety": False}}
    elif row == "flat":
        # Width and step size fit one architecture: the other takes its own defaults.
        change = {"architecture": "flat", "hidden_units": 0, "without": [], "ppo": {"learning_rate": None}}
    elif kind == "without":
        change = {"without": list(dict.fromkeys([*config.controller.without, value]))}
    elif kind == "cadence":
        change = {"decide_every": int(value)}
    elif kind == "proxy":
        return _changed(config, row, {"proxy": {"model": {"preset": value, "path": None, "hub": None}}})
    return None if change is None else _changed(config, row, {"controller": change})


def noise_of(row: str) -> float:
    """Standard deviation of the noise on readings, relative to them.

    >>> noise_of("noisy_20"), noise_of("flat")
    (0.2, 0.0)
    """
    match = re.fullmatch(r"noisy_(\d+)", row)
    return int(match[1]) / 100 if match else 0.0


def _changed(config: Config, row: str, change: Mapping[str, Any]) -> Config:
    def merged(tree: dict[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
        return tree | {key: merged(tree[key], value) if isinstance(value, Mapping) else value for key, value in part.items()}

    variant = validated(merged(config.model_dump(mode="json"), change), f"of ablation row {row}")
    if variant == config:
        raise UserError(f"ablation.rows: must change something, got {row}, which this config is already; leave it out")
    return variant
