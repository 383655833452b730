"""Cells of a table, run with a bar and a line each in the run's account: what the benchmark and the ablation share.

(role, base, runs) → cluster.table_runs → costs.jsonl: `proxy/<line>/<key>` or `target/<base>/<line>/<key>` → results, with `flops` from there
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
    """The results of `runs`, in order: as `run_table` gives them, but with the account's `flops` in the place of their `cost`.

    Args:
        run: whose account pays, and whose console tells.
        config: of the runs; the run's, or a variant of it.
        role: which model is tuned.
        base: folder it starts from.
        runs: what to run.
        title: of the bar.
        lines: names of the runs in the account; None: case and method. Behind them stands what decides the result, hashed, for settings may change.
    """
    names = lines or [f"{asked.case.name}/{asked.method}" for asked in runs]
    where = role if role == "proxy" else f"{role}/{Path(base).name}"
    ids: dict[int, str] = {}

    def note(index: int, key: str, result: dict[str, Any], cached: bool) -> None:
        ids[index] = f"{where}/{names[index]}/{key[:8]}"
        run.account.add("tuning", ids[index], role, Cost(**result["cost"]), cached=cached)

    with run.progress(title) as update:
        results = run_table(config, role, base, runs, update, note)
    kept = [{name: value for name, value in result.items() if name != "cost"} for result in results]
    return [result | {"flops": run.account.flops("tuning", ids[index])} for index, result in enumerate(kept)]
