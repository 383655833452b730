"""What a sweep found: its trials, the best of them by validation, and the table that says so.

trials.json → best_trial → best_config → best.yaml          trials.json → sweep_table → terminal
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from rich.table import Table

from proxymix.config import Config
from proxymix.controller_config import SweptConfig
from proxymix.errors import UserError
from proxymix.sweep_space import trial_config

Trial = Mapping[str, Any]
"""`trial` (its number), `status`, `overrides` and `rungs`: a row a rung with `episodes`, `validation_score`, `validation_scores`, tokens."""


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest validation score among those that finished; the earliest of equals.

    The return in training decides nothing: trials have different rewards, and each has seen its cases many times. A score of an earlier rung
    decides nothing either: it belongs to a controller that `train_controller` would not stop at.

    Raises:
        UserError: no trial finished.
    """
    finished = [trial for trial in trials if trial["status"] == "finished"]
    if not finished:
        error = next((trial["error"] for trial in trials if trial["error"]), "none failed")
        raise UserError(f"sweep: a trial must finish, got none of {len(trials)}; the first error: {error}; mend it and run the sweep again to go on")
    return max(finished, key=lambda trial: trial["rungs"][-1]["validation_score"])


def best_config(config: Config, trial: Trial, swept: SweptConfig | None = None) -> str:
    """A whole config with the trial's values, as YAML: a run of its own, `<name>-best`, for `train_controller` or any other job.

    Args:
        config: of the sweep.
        trial: of which the values are.
        swept: what finding them cost, for the account of that run.
    """
    tree = trial_config(config, trial["overrides"]).model_dump(mode="json", exclude={"sweep"}) | {"name": f"{config.name}-best"}
    tree["controller"]["swept"] = swept and swept.model_dump(mode="json")
    last = trial["rungs"][-1]
    score = f"validation score {last['validation_score']:+.4f} after {last['episodes']} episodes"
    return f"# Trial {trial['trial']} of the sweep of run {config.name}: {score}.\n" + yaml.safe_dump(tree, sort_keys=False)


def sweep_table(trials: Sequence[Trial]) -> Table:
    """Every trial, best first, for the terminal: its episodes, how many more were lost and run again, its validation score ± standard error over the
    cases in points, and what it changed.
    """
    caption = "validation: mean accuracy minus the references' on the same held-out cases, in points ± standard error over cases"
    table = Table(title="sweep", caption=caption, title_style="bold", header_style="dim", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for title in ("trial", "status", "episodes", "dropped", "validation"):
        table.add_column(title, justify="left" if title == "status" else "right", no_wrap=True)
    table.add_column("configuration")
    best = best_trial(trials)["trial"]
    for trial in sorted(trials, key=_rank):
        style = "bold green" if trial["trial"] == best else None
        episodes = str(trial["rungs"][-1]["episodes"]) if trial["rungs"] else "–"
        dropped = str(sum(rung.get("num_dropped", 0) for rung in trial["rungs"]))  # Sweeps of before did not count them.
        table.add_row(str(trial["trial"]), trial["status"], episodes, dropped, _points(trial), _short(trial["overrides"]), style=style)
    return table


def _rank(trial: Trial) -> tuple[float, float, int]:
    """Furthest first, then by score."""
    return -len(trial["rungs"]), -trial["rungs"][-1]["validation_score"] if trial["rungs"] else 0.0, trial["trial"]


def _points(trial: Trial) -> str:
    if not trial["rungs"]:
        return "–"
    scores = 100 * np.array(trial["rungs"][-1]["validation_scores"])
    error = f" ±{scores.std(ddof=1) / len(scores) ** 0.5:.1f}" if len(scores) > 1 else ""
    return f"{scores.mean():+.1f}{error}".replace("-", "−")


def _short(overrides: Mapping[str, Any]) -> str:
    """Keys without what they share, numbers with three digits.

    >>> _short({"controller.ppo.clip": 0.31234, "controller.architecture": "flat"})
    'clip 0.312, architecture flat'
    """
    return ", ".join(f"{key.rpartition('.')[2]} {f'{value:.3g}' if isinstance(value, float) else value}" for key, value in overrides.items())
