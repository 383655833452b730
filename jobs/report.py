"""The report: `report.html` and `plots/` from whatever the run folder holds."""

from __future__ import annotations

from jobs.entry import launch
from jobs.run import Run
from proxymix.report import write_report


def report(run: Run) -> None:
    """Writes the report and says where it is."""
    with run.phase("report"):
        path = write_report(run.folder)
    run.say(f"report: {path}")


if __name__ == "__main__":
    launch(report)
