"""All of it: bases, mirroring, controller, service, target runs, scores, report. Run it again and it goes on from where it stopped."""

from __future__ import annotations

from contextlib import nullcontext

from cluster.evaluation import EvaluationPool
from cluster.session import dashboard_url, ray_session
from jobs.check_mirroring import check_mirroring
from jobs.entry import launch
from jobs.evaluate import evaluate, is_complete, show_table
from jobs.pretrain_base import pretrain_base
from jobs.report import report
from jobs.run import Run
from jobs.serve_controller import check_service, serving
from jobs.train_controller import train_controller
from jobs.tune_target import PROXYMIX, prepared_gate, tune_target
from proxymix.cases import load_sources


def pipeline(run: Run) -> None:
    """The phases in order; each skips what is already done."""
    config = run.config
    if is_complete(run):
        show_table(run)
        return report(run)
    sources = load_sources(config)  # Bad data stops here, before anything has started.
    with ray_session(config):
        if PROXYMIX in config.methods:
            check_service(run)
        run.say(f"run {run.folder}  ·  Ray dashboard {dashboard_url() or 'off'}")
        bases = pretrain_base(run)
        with EvaluationPool(config, bases[1], sources) as pool:  # Its engines start while the controller is being learnt.
            gate = prepared_gate(check_mirroring(run, bases)) if PROXYMIX in config.methods else None
            served = PROXYMIX in config.methods and gate is None
            if served and config.service.url is None:
                train_controller(run, bases[0])
            with serving(run) if served else nullcontext() as url:
                tune_target(run, bases[1], url, gate, pool)
            evaluate(run, pool)
    report(run)


if __name__ == "__main__":
    launch(pipeline)
