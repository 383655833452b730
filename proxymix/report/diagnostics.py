"""What stands behind the target's run: mirroring, the controller's learning, where the time went. Each function draws one panel.

mirroring.json, learning_curve.jsonl, events.jsonl, decisions.jsonl → Figure
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from proxymix.report.run_data import Row, TargetRun
from proxymix.report.theme import ACCENT, HUES, MUTED, WARM, label_right, new_axes, styled

MARKERS = "osD^vPX*"
PHASES = (
    *("start_ray", "pretrain_base", "check_mirroring", "train_controller", "start_serve", "serve_controller"),
    *("tune_ahead", "tune_target", "start_engines", "evaluate", "report"),
)
MEANWHILE = ("start_serve", "tune_ahead", "start_engines")
"""Phases that go on beside others; their time is in the run's only as far as it was waited for."""
WINDOW = 5
"""Iterations in the running mean of the reward."""
STAGE_PHASES = {"train": ACCENT, "validate": HUES[1], "decide": WARM}


@styled
def plot_mirroring(mirroring: Row) -> Figure:
    """Relative forgetting of each (task, later task) pair, proxy against target; colour and marker tell the sequence."""
    figure, axes = new_axes("Pairs of tasks", "relative forgetting φ of the target", height=3.3, right=1.5, top=0.5)
    names = list(dict.fromkeys(pilot["sequence"] for pilot in mirroring["pilots"]))
    for index, name in enumerate(names):
        pilots = [pilot for pilot in mirroring["pilots"] if pilot["sequence"] == name]
        proxy, target = (np.concatenate([pilot[model] for pilot in pilots]) for model in ("proxy", "target"))
        rho = mirroring["per_sequence"].get(name)
        label = name if rho is None else f"{name}, ρ {rho:.2f}"
        marker = MARKERS[index % len(MARKERS)]
        axes.scatter(proxy, target, s=20, color=HUES[index % len(HUES)], marker=marker, alpha=0.75, linewidth=0, label=label)
    axes.axline((0, 0), slope=1, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
    axes.set(xlabel="relative forgetting φ of the proxy")
    axes.grid()
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), fontsize=8, handletextpad=0.2)
    return figure


@styled
def plot_rho(mirroring: Row, threshold: float | None) -> Figure:
    """ρ of each sequence, their mean with its interval, and what to hold it against; the gate's threshold as a line."""
    rows: dict[str, float] = {**mirroring["per_sequence"], "mean": mirroring["rho"], "age held fixed": mirroring["partial_rho"]}
    if mirroring.get("ceiling") is not None:
        rows["target with itself"] = mirroring["ceiling"]
    figure, axes = new_axes("Rank correlation", "Spearman's ρ; bar: 95 % interval", height=1.1 + 0.26 * len(rows), left=1.3, right=0.5, top=0.62)
    heights = range(len(rows))
    strong = [name == "mean" for name in rows]
    axes.hlines([list(rows).index("mean")], *mirroring["interval"], color=ACCENT, linewidth=2.5)
    axes.scatter(
        list(rows.values()),
        heights,
        s=[48 if is_mean else 26 for is_mean in strong],
        color=[ACCENT if is_mean else MUTED for is_mean in strong],
        zorder=3,
    )
    for height, value in enumerate(rows.values()):
        axes.text(1.03, height, f"{value:.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    if threshold is not None:
        axes.axvline(threshold, color=WARM, linewidth=1, linestyle=(0, (3, 1.5)))
        axes.text(threshold, 1.03, "gate", transform=axes.get_xaxis_transform(), ha="center", fontsize=8, color=WARM)
    axes.set_yticks(heights, list(rows))
    axes.set(xlim=(min(0.0, *rows.values(), mirroring["interval"][0]), 1), ylim=(len(rows) - 0.5, -0.5), xlabel="ρ")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    return figure


@styled
def plot_score(rows: Sequence[Row]) -> Figure:
    """The score of each iteration's episodes, beside that of the reference runs of the same case where the reward had them."""
    figure, axes = new_axes("Score", "score J of an iteration's episodes, mean ± 1 sd", top=0.5)
    steps = [row["iteration"] for row in rows]
    score, spread = (np.array([row[key] for row in rows]) for key in ("score_mean", "score_sd"))
    labels = [(float(score[-1]), "controller", ACCENT)]
    axes.fill_between(steps, score - spread, score + spread, color=ACCENT, alpha=0.15, linewidth=0)
    axes.plot(steps, score, color=ACCENT, linewidth=1.6)
    if has_reference(rows):
        reference = [float(row["reference_mean"]) for row in rows]
        axes.plot(steps, reference, color=MUTED, linewidth=1.1, linestyle=(0, (3, 1.5)))
        labels.append((reference[-1], "reference", MUTED))
    _finish(axes, labels)
    return figure


def has_reference(rows: Sequence[Row]) -> bool:
    """Whether every iteration knows the score of its reference runs; the paper's reward has none."""
    return all(row["reference_mean"] is not None for row in rows)


@styled
def plot_reward(rows: Sequence[Row]) -> Figure:
    """Mean reward of each iteration, and its running mean over WINDOW iterations."""
    figure, axes = new_axes("Reward", "mean reward of an episode", top=0.5)
    steps, reward = [row["iteration"] for row in rows], np.array([row["reward_mean"] for row in rows])
    trend = np.array([reward[max(0, end - WINDOW) : end].mean() for end in range(1, len(reward) + 1)])
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.plot(steps, reward, color=ACCENT, linewidth=0.8, alpha=0.45)
    axes.plot(steps, trend, color=ACCENT, linewidth=2)
    _finish(axes, [(float(trend[-1]), f"mean of {WINDOW}", ACCENT)])
    return figure


@styled
def plot_replay_share(rows: Sequence[Row]) -> Figure:
    """Mean replay share the policy chose in each iteration."""
    figure, axes = new_axes("Replay share", "mean share of samples replayed", top=0.5)
    share = [row["replay_share_mean"] for row in rows]
    axes.plot([row["iteration"] for row in rows], share, color=ACCENT, linewidth=1.6)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _finish(axes, [(share[-1], "controller", ACCENT)])
    return figure


def _finish(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    axes.set_xlabel("iteration")
    axes.grid(axis="y")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_right(axes, labels)


def phase_seconds(events: Sequence[Row]) -> dict[str, float]:
    """Wall-clock of every phase in the pipeline's order, summed over its runs, whether they ended well or failed."""
    totals: dict[str, float] = {}
    for event in events:
        if event["event"] in ("end", "failed"):
            totals[event["phase"]] = totals.get(event["phase"], 0.0) + event["seconds"]
    return {phase: totals[phase] for phase in [*PHASES, *(phase for phase in totals if phase not in PHASES)] if phase in totals}


def unfinished_phases(events: Sequence[Row]) -> dict[str, list[str]]:
    """Phases whose latest run did not end well, as `{"begun": [...], "failed": [...]}`. The phase that writes this report is never among them."""
    latest = {event["phase"]: event["event"] for event in events if event["event"] in ("start", "end", "failed") and event["phase"] != "report"}
    return {name: [phase for phase, last in latest.items() if last == event] for name, event in (("begun", "start"), ("failed", "failed"))}


def duration(seconds: float) -> str:
    """A length of time in the unit people would use.

    >>> [duration(s) for s in (0.004, 0.25, 9, 75, 3 * 3600 + 1500)]
    ['< 0.1 s', '0.25 s', '9 s', '1 min 15 s', '3 h 25 min']
    """
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


@styled
def plot_phases(totals: Mapping[str, float]) -> Figure:
    """Wall-clock of each phase of the run, summed over its runs."""
    figure, axes = new_axes("Phases of the run", "wall-clock", height=1.1 + 0.26 * len(totals), left=1.15, right=0.9, top=0.62)
    colours = [MUTED if phase in MEANWHILE else ACCENT for phase in totals]
    axes.barh([phase.replace("_", " ") for phase in totals], list(totals.values()), height=0.62, color=colours)
    for index, seconds in enumerate(totals.values()):
        axes.annotate(duration(seconds), (seconds, index), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines["left"].set_visible(False)
    return figure


@styled
def plot_stage_time(runs: Sequence[TargetRun], titles: Mapping[str, str]) -> Figure:
    """Per method, how the seconds of its stages split into training, validating and deciding, percent."""
    methods = [method for method in titles if any(run.decisions for run in runs if run.method == method)]
    figure, axes = new_axes(
        "Stages of tuning", "wall-clock by what it was spent on", height=1.1 + 0.26 * len(methods), left=1.15, right=0.9, top=0.62
    )
    seconds = np.array([[_stage_seconds(runs, method, phase) for phase in STAGE_PHASES] for method in methods])  # [num_methods, num_phases]
    totals = seconds.sum(axis=1, keepdims=True)
    shares = np.divide(seconds, totals, out=np.zeros_like(seconds), where=totals > 0)
    left = np.cumsum(shares, axis=1) - shares
    for index, (phase, colour) in enumerate(STAGE_PHASES.items()):
        axes.barh([titles[method] for method in methods], shares[:, index], left=left[:, index], height=0.62, color=colour, label=phase)
    for index, total in enumerate(totals[:, 0]):
        axes.text(1.02, index, duration(float(total)), va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of the time at the right")
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, fontsize=8, handlelength=0.9, handletextpad=0.4, columnspacing=1.2)
    return figure


def _stage_seconds(runs: Sequence[TargetRun], method: str, phase: str) -> float:
    return sum(float(row["seconds"].get(phase, 0.0)) for run in runs if run.method == method for row in run.decisions)
