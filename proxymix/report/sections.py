"""The sections of the page, in reading order: a title, a sentence on how to read it, panels, or what is missing.

RunData → [Section]
"""

from __future__ import annotations

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from proxymix.report.costs import TITLES, cost_sentence, plot_costs
from proxymix.report.diagnostics import (
    duration,
    has_reference,
    phase_seconds,
    plot_mirroring,
    plot_phases,
    plot_replay_share,
    plot_reward,
    plot_rho,
    plot_score,
    plot_stage_time,
    unfinished_phases,
)
from proxymix.report.plots import highest_loss, plot_accuracy, plot_losses, plot_mixtures
from proxymix.report.run_data import RunData
from proxymix.report.theme import source_colours
from proxymix.report.verdict import fallback_sentence, gate_sentence, pilot_cost_sentence
from proxymix.table import method_title

MAX_SEEDS = 4
"""Panels of mixtures that are shown; the rest look alike and stand in decisions.jsonl."""


@dataclass(frozen=True)
class Panel:
    """One figure, its file name, and what it shows in words."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A part of the page. Without panels it says what is not there yet."""

    key: str
    title: str
    text: str
    missing: str
    panels: list[Panel] = field(default_factory=list)


def sections(data: RunData) -> list[Section]:
    """Every plotted section, also those that have nothing to show."""
    return [_mixtures(data), _losses(data), _accuracy(data), _mirroring(data), _learning(data), _cost(data), _time(data)]


def _mixtures(data: RunData) -> Section:
    runs = [run for run in data.of_method("proxymix") if run.decisions]
    colours = source_colours(data.anchors, data.tasks)
    panels = []
    for run in runs[:MAX_SEEDS]:
        alt = f"Stacked mixture weights of {', '.join(run.sources)} over {run.edges[-1]} optimizer steps, seed {run.seed}."
        panels.append(Panel(f"mixtures-seed{run.seed}", alt, plot_mixtures(run, colours, data.tasks, f"seed {run.seed}")))
    text = "What ProxyMix drew its batches from, stage by stage. Grey: anchors of the base model; colours: tasks in the order they came. "
    text += fallback_sentence(runs) + (f" The first {MAX_SEEDS} of {len(runs)} seeds are shown." if len(runs) > MAX_SEEDS else "")
    return Section("mixtures", "Mixtures over time", text, "decisions of ProxyMix (target/proxymix/seed*/decisions.jsonl)", panels)


def _losses(data: RunData) -> Section:
    colours = source_colours(data.anchors, data.tasks)
    firsts = [next((run for run in data.of_method(method) if run.decisions), None) for method in data.methods]
    runs = [run for run in firsts if run]
    panels = []
    for run in runs:
        title = f"{method_title(run.method)}, seed {run.seed}"
        alt = f"Validation loss of {', '.join(run.sources)} over optimizer steps under {title}."
        panels.append(Panel(f"losses-{run.method}", alt, plot_losses(run, colours, data.tasks, title, highest_loss(runs))))
    text = "Validation loss of every source as the controller saw it, one seed per method on one scale. "
    text += "Thick: the task being tuned on. A thin line that rises is being forgotten."
    return Section("losses", "What was learnt, what was forgotten", text, "decisions of any method (target/*/seed*/decisions.jsonl)", panels)


def _accuracy(data: RunData) -> Section:
    panels = []
    for method in data.methods:
        runs = [run for run in data.of_method(method) if run.scored]
        if runs:
            alt = f"Accuracy in percent after each task on every source under {method_title(method)}, mean over {len(runs)} seeds."
            panels.append(Panel(f"accuracy-{method}", alt, plot_accuracy(runs, method_title(method))))
    text = "Test accuracy in percent, mean over seeds: one row after each task, one column per source. "
    text += "Framed: just learnt. Read down a column to see what became of it. Hatched: not scored."
    return Section("accuracy", "Accuracy after each task", text, "scores of any method (target/*/seed*/accuracy.json)", panels)


def _mirroring(data: RunData) -> Section:
    if data.mirroring is None:
        return Section("mirroring", "Does the proxy mirror the target?", "", "the mirroring check (mirroring.json)")
    alt = f"Scatter of relative forgetting, target against proxy, Spearman's ρ {data.mirroring['rho']:.2f}."
    panels = [Panel("mirroring", alt, plot_mirroring(data.mirroring))] if data.mirroring.get("pilots") else []
    threshold = data.config.get("transfer", {}).get("min_rank_correlation")
    panels.append(
        Panel("mirroring-rho", f"Spearman's ρ per sequence and their mean. {gate_sentence(data.mirroring)}", plot_rho(data.mirroring, threshold))
    )
    text = f"Do both models forget the same things first? {gate_sentence(data.mirroring)} {pilot_cost_sentence(data.mirroring, data.card)}".strip()
    return Section("mirroring", "Does the proxy mirror the target?", text, "the pilots' forgetting values (mirroring.json)", panels)


def _learning(data: RunData) -> Section:
    rows = data.learning_curve
    if not rows:
        return Section("learning", "How the controller learnt", "", "the learning curve (controller/learning_curve.jsonl)")
    episodes = sum(row["episodes"] for row in rows)
    text = f"{len(rows)} iterations, {episodes} proxy episodes. Each iteration trains on one case, so the score moves with the case"
    text += ": compare it with the reference on that same case." if has_reference(rows) else "; this reward has no reference to hold it against."
    dropped = sum(row.get("num_dropped", 0) for row in rows)
    text += f" {dropped} more episodes were lost with an env runner that died or hung, and run again." if dropped else ""
    panels = [
        Panel("learning-score", f"Score{' and reference' * has_reference(rows)} over {len(rows)} iterations.", plot_score(rows)),
        Panel("learning-reward", f"Mean reward over {len(rows)} iterations with its running mean.", plot_reward(rows)),
        Panel("learning-replay-share", f"Replay share chosen over {len(rows)} iterations.", plot_replay_share(rows)),
    ]
    return Section("learning", "How the controller learnt", text, "the learning curve", panels)


def _cost(data: RunData) -> Section:
    made = data.account.made(*TITLES)
    if not made:
        return Section("cost", "Where the cost went", "", "the account (costs.jsonl)")
    text = cost_sentence(made, data.account.spent())
    return Section("cost", "Where the cost went", text, "the account (costs.jsonl)", [Panel("cost", text, plot_costs(made))])


def _time(data: RunData) -> Section:
    totals, panels = phase_seconds(data.events), []
    if totals:
        alt = "Seconds per phase: " + ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in totals.items()) + "."
        panels.append(Panel("time-phases", alt, plot_phases(totals)))
    titles = {method: method_title(method) for method in data.methods}
    if any(run.decisions for run in data.runs):
        panels.append(
            Panel("time-tuning", "Share of training, validating and deciding in the stages of each method.", plot_stage_time(data.runs, titles))
        )
    text = "Wall-clock, summed over a phase's runs. Phases follow each other, but for the grey ones, which went on beside the others."
    unfinished = {name: ", ".join(phases).replace("_", " ") for name, phases in unfinished_phases(data.events).items()}
    text += f" Begun but not ended: {unfinished['begun']}." if unfinished["begun"] else ""
    text += f" Failed the last time: {unfinished['failed']}." if unfinished["failed"] else ""
    return Section("time", "Where the time went", text, "finished phases (events.jsonl)", panels)
