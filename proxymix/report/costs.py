"""Where the cost went: what each kind of work took, whoever paid for it, and what this run paid.

costs.jsonl → CostLines → a panel and a sentence
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from proxymix.account import CostLine, Item, of_policy, total_flops
from proxymix.report.diagnostics import duration
from proxymix.report.theme import ACCENT, MUTED, WARM, new_axes, styled

TITLES: dict[Item, str] = {
    "pretraining": "base models",
    "pilot": "mirroring pilots",
    "reference": "reference runs",
    "episodes": "controller episodes",
    "sweep_trial": "sweep trials",
    "guard": "guard runs",
    "tuning": "target runs",
}


@styled
def plot_costs(made: Sequence[CostLine]) -> Figure:
    """Operations per kind of work; what `policy_cost` is made of stands out."""
    items = [item for item in TITLES if any(line.item == item for line in made)]
    flops = [total_flops(line for line in made if line.item == item) for item in items]
    policy = {line.item for line in made if of_policy(line)}
    colours = [WARM if item in policy else ACCENT if item == "tuning" else MUTED for item in items]
    figure, axes = new_axes("Operations", "floating-point, as made", height=1.1 + 0.26 * len(items), left=1.35, right=1.9, top=0.62)
    axes.barh([TITLES[item] for item in items], flops, height=0.62, color=colours)
    for index, (item, number) in enumerate(zip(items, flops, strict=True)):
        lines = [line for line in made if line.item == item]
        gpu = sum(line.gpu_seconds for line in lines)
        seconds = f"CPU {duration(sum(line.cpu_seconds for line in lines))}" + (f", GPU {duration(gpu)}" if gpu else "")
        axes.annotate(f"{number:.2g}, {seconds}", (number, index), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("operations")
    axes.spines["left"].set_visible(False)
    return figure


def cost_sentence(made: Sequence[CostLine], spent: Sequence[CostLine]) -> str:
    """How much of it all was the policy's, how much was found in a cache, how much was done again."""
    total = total_flops(made) or 1
    policy, cached = (total_flops(chosen) for chosen in ([x for x in made if of_policy(x)], [x for x in made if x.cached]))
    again = total_flops(spent) - (total_flops(made) - cached)
    text = f"The results took {total_flops(made):.3g} operations, {100 * policy / total:.0f}\u00a0% of them for the policy (orange)."
    text += f" {100 * cached / total:.0f}\u00a0% came from a cache and cost this run nothing; the tables count them all the same." if cached else ""
    text += f" Work that was lost and done again took {again:.2g} more." if again > 0 else ""
    return f"{text} Seconds are process time, start-up excluded."
