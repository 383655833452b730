"""The run in words: only what the numbers say, also when they say that ProxyMix lost.

metrics.json, mirroring.json, decisions → sentences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from proxymix.metrics import mean_and_error
from proxymix.report.run_data import Row, TargetRun
from proxymix.table import COLUMNS, cell, method_title, percent

AA = COLUMNS[0]
COMPARED = (("FGT", "forgetting"), ("NTA", "new-task accuracy"), ("SS", "the safety score"))


def verdict(metrics: Mapping[str, Any] | None) -> str:
    """One sentence: where ProxyMix ended, against the best baseline by AA, and at what cost; before it, how much of it was the fallback."""
    if metrics is None:
        return "Not there yet: no method has been scored, so there is nothing to say about ProxyMix."
    return f"{_fallback(metrics)}{_comparison(metrics)}"


def _fallback(metrics: Mapping[str, Any]) -> str:
    share = metrics["methods"].get("proxymix", {}).get("fallback_share", {}).get("mean")
    if not share:
        return ""
    stages = "Every stage" if share == 1 else f"{percent(share)} of the stages"
    return f"{stages} of ProxyMix {'was' if share == 1 else 'were'} tuned on the declared fallback mixture, not on the controller's. "


def _comparison(metrics: Mapping[str, Any]) -> str:
    means = {method: row["AA"]["mean"] for method, row in metrics["methods"].items() if row["AA"]["mean"] is not None}
    baselines = [method for method in means if not method.startswith("proxymix")]
    best = max(baselines, key=means.__getitem__, default=None)
    if "proxymix" not in means:
        leading = f"the best baseline so far is {_placed(metrics, best)}" if best else "and no baseline is complete"
        return f"Not there yet: ProxyMix has not been scored; {leading}."
    own = f"ProxyMix ended at AA {_value(metrics, 'proxymix')}"
    if best is None:
        return f"{own}; no baseline has been scored, so there is nothing to compare it with{_cost(metrics)}."
    compared = [f"{name} was {_side(metrics, best, key)}" for key, name in COMPARED if _paired(metrics, best, key)]
    distance, doubt = _distance(metrics, best)
    beside = f"; {', '.join(compared)}" if compared else ""
    return f"{own}, {distance} the best baseline, {_placed(metrics, best)}{doubt}{beside}{_cost(metrics)}."


def _distance(metrics: Mapping[str, Any], best: str) -> tuple[str, str]:
    """`3.4 ± 0.5 points above`, seed by seed, and how far that can be trusted."""
    differences = _paired(metrics, best, "AA")
    if not differences:
        mean, error = metrics["methods"]["proxymix"]["AA"]["mean"] - metrics["methods"][best]["AA"]["mean"], float("nan")
        doubt = ", on other seeds, so the difference has no known error"
    else:
        mean, error = mean_and_error(differences)
        doubt = ", on one seed, so the difference has no known error" if len(differences) == 1 else ""
        doubt = ", less than two standard errors apart" if abs(mean) < 2 * error else doubt
    if abs(mean) < 0.0005:
        return "level with", doubt
    spread = "" if np.isnan(error) else f"\u00a0±\u00a0{100 * error:.1f}"
    return f"{100 * abs(mean):.1f}{spread} points {'above' if mean > 0 else 'below'}", doubt


def _side(metrics: Mapping[str, Any], best: str, key: str) -> str:
    mean, _ = mean_and_error(_paired(metrics, best, key))
    if abs(mean) < 0.0005:
        return "the same"
    return f"{100 * abs(mean):.1f} points {'higher' if mean > 0 else 'lower'}"


def _paired(metrics: Mapping[str, Any], best: str, key: str) -> list[float]:
    """ProxyMix minus `best`, for every seed that has both."""
    own, other = (metrics["methods"][method].get(key, {}).get("per_seed", []) for method in ("proxymix", best))
    return [a - b for a, b in zip(own, other, strict=False) if a is not None and b is not None]


def _value(metrics: Mapping[str, Any], method: str) -> str:
    mean, error = cell(AA, metrics["methods"][method]["AA"])
    return mean + error.replace("±", "\u00a0±\u00a0")


def _placed(metrics: Mapping[str, Any], method: str) -> str:
    return f"{method_title(method)} ({_value(metrics, method)})"


def _cost(metrics: Mapping[str, Any]) -> str:
    cost = metrics["methods"]["proxymix"].get("total_cost", {}).get("mean")
    return "" if cost is None else f"; controller and target run together cost {cost:.1f} random-replay runs"


def gate_sentence(mirroring: Mapping[str, Any]) -> str:
    """What the mirroring check found, and whether the controller may be transferred."""
    low, high = mirroring["interval"]
    found = f"ρ\u00a0=\u00a0{mirroring['rho']:.2f} (95\u00a0% interval {low:.2f} to {high:.2f}, p\u00a0=\u00a0{mirroring['p_value']:.2g})"
    ceiling = mirroring.get("ceiling")
    beside = [f"{mirroring['partial_rho']:.2f} with the age of the task held fixed"]
    beside += [f"{ceiling:.2f} between the target's own seeds, which is as much as any proxy can reach"] if ceiling is not None else []
    gate = (
        "The gate is open: the controller may be transferred." if mirroring["passed"] else "The gate is closed: the proxy is no guide to this target."
    )
    reasons = " ".join(f"{reason[:1].upper()}{reason[1:].rstrip('.')}." for reason in mirroring.get("reasons", []))
    return f"{found}; {'; '.join(beside)}. {gate} {reasons}".strip()


def pilot_cost_sentence(mirroring: Mapping[str, Any], card: Mapping[str, Any] | None) -> str:
    """What the pilots cost, beside the controller's training where both are known; empty when nobody counted."""
    flops, training, tokens = mirroring.get("training_flops"), (card or {}).get("training_flops"), mirroring.get("num_tokens")
    if flops:
        beside = f", {flops / training:.2g} times the controller's training" if training else ""
        return f"The pilots took {flops:.2g} floating-point operations{beside}."
    return f"The pilots were tuned on {tokens:,} tokens." if tokens else ""


def fallback_sentence(runs: Sequence[TargetRun]) -> str:
    """How often the fallback mixture stood in for the controller, and why."""
    rows: list[Row] = [row for run in runs for row in run.decisions]
    fallen = [row for row in rows if row["fallback"]]
    if not fallen:
        return "Every decision was the controller's own."
    reasons = ", ".join(dict.fromkeys(str(row["fallback"]) for row in fallen))
    return f"{len(fallen)} of {len(rows)} decisions (hatched) used the declared fallback mixture: {reasons}."
