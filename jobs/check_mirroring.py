"""Do proxy and target forget the same things? Pilots on both, a verdict in `mirroring.json`, and a gate."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.pilots import run_pilots
from cluster.session import ray_session
from jobs.entry import launch
from jobs.pretrain_base import pretrain_base
from jobs.run import Run
from proxymix.account import total_flops
from proxymix.artifacts import write_json
from proxymix.cases import draw_cases
from proxymix.errors import UserError
from proxymix.mirroring import Mirroring, Pilot
from proxymix.mirroring import check_mirroring as diagnose


def check_mirroring(run: Run, bases: tuple[str, str]) -> dict[str, Any]:
    """The verdict, computed once per run.

    Raises:
        UserError: the gate is shut and `transfer.on_failure` is `stop`.
    """
    config = run.config
    verdict: dict[str, Any] | None = run.read("mirroring.json")
    if verdict is None:
        cases = draw_cases(config.controller.curriculum, config.tuning, config.transfer.num_sequences, config.seed, label="pilot")
        with run.phase("check_mirroring"), run.progress("mirroring pilots") as update:
            pilots = run_pilots(config, bases, cases, run.account, update)
        verdict = _verdict(run, diagnose(pilots, np.random.default_rng(config.seed)), pilots)
        verdict["training_flops"] = total_flops(run.account.made("pilot"))
        write_json(run.folder / "mirroring.json", verdict)
    low, high = verdict["interval"]
    outcome = "transfer" if verdict["passed"] else f"no transfer ({'; '.join(verdict['reasons'])})"
    run.say(f"mirroring ρ = {verdict['rho']:.2f} [{low:.2f}, {high:.2f}], p = {verdict['p_value']:.4f}: {outcome}")
    if not verdict["passed"] and config.transfer.on_failure == "stop":
        raise UserError(f"transfer.on_failure: stop, because {'; '.join(verdict['reasons'])}; use a larger proxy, or on_failure: fallback")
    return verdict


def _verdict(run: Run, result: Mirroring, pilots: list[Pilot]) -> dict[str, Any]:
    transfer, reasons = run.config.transfer, []
    if result.rho < transfer.min_rank_correlation:
        reasons.append(f"ρ {result.rho:.2f} is below transfer.min_rank_correlation {transfer.min_rank_correlation:g}")
    if result.interval[0] <= transfer.min_interval_bound:
        reasons.append(f"the interval's lower end {result.interval[0]:.2f} is not above transfer.min_interval_bound {transfer.min_interval_bound:g}")
    return {**as_json(result, pilots), "passed": not reasons, "reasons": reasons}


def as_json(result: Mirroring, pilots: list[Pilot]) -> dict[str, Any]:
    """Result and pilots as JSON values; four digits of a φ are more than its rows can tell."""
    columns = ("proxy", "target", "gaps", "tasks")
    points = [{**asdict(pilot), **{column: np.round(getattr(pilot, column), 4).tolist() for column in columns}} for pilot in pilots]
    return {**asdict(result), "interval": list(result.interval), "pilots": points}


def job(run: Run) -> None:
    """Stand-alone: bases, pilots, verdict."""
    with ray_session(run.config):
        check_mirroring(run, pretrain_base(run))


if __name__ == "__main__":
    launch(job)
