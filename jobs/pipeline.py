"""All of it: bases, mirroring, controller, service, target runs, scores, report. Run it again and it goes on from where it stopped."""

from __future__ import annotations

import time

from cluster.session import dashboard_url, ray_session
from jobs.entry import launch
from jobs.evaluate import evaluate, is_complete, show_table
from jobs.report import report
from jobs.run import Run
from jobs.tune_target import tuned_targets
from proxymix.cases import load_sources


def pipeline(run: Run) -> None:
    """The phases in order; each skips what is already done."""
    if is_complete(run):
        show_table(run)
    else:
        sources = load_sources(run.config)  # Bad data stops here, before anything has started.
        began = time.perf_counter()
        with ray_session(run.config):
            seconds = time.perf_counter() - began
            run.say(f"run {run.folder}  ·  Ray dashboard {dashboard_url() or 'off'}")
            with tuned_targets(run, sources) as pool:
                run.meanwhile("start_ray", seconds)  # Only now: what is refused before the first phase leaves no run behind.
                evaluate(run, pool)
    report(run)


if __name__ == "__main__":
    launch(pipeline)
