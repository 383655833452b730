"""Cells of a table, run with a bar and a line each in the run's account: what the benchmark and the ablation share.

(role, base, runs) → cluster.table_runs → results, in order;   costs.jsonl: `proxy/<line>` or `target/<base>/<line>`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.table_runs import Role, TableRun, run_table
from jobs.run import Run
from proxymix.account import Cost
from proxymix.config import Config


def run_on(
    run: Run, config: Config, role: Role, base: str, runs: Sequence[TableRun], title: str, lines: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The results of `runs`, in order.

    Args:
        run: whose account pays, and whose console tells.
        config: of the runs; the run's, or a variant of it.
        role: which model is tuned.
        base: folder it starts from.
        runs: what to run.
        title: of the bar.
        lines: names of the runs in the account; None: case and method.
    """
    names = lines or [f"{asked.case.name}/{asked.method}" for asked in runs]
    where = role if role == "proxy" else f"{role}/{Path(base).name}"

    def note(index: int, result: dict[str, Any], cached: bool) -> None:
        run.account.add("tuning", f"{where}/{names[index]}", role, Cost(**result["cost"]), cached=cached)

    with run.progress(title) as update:
        return run_table(config, role, base, runs, update, note)
