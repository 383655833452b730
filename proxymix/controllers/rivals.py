"""Every rule a controller is compared with, by the name of its row, built for one run.

    method, run, what was found on the proxy → rival → Controller

A rule that needs data or a model looks at the run when it is asked, and there through `visible_sources` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from proxymix.controllers.baselines import baseline, kind_and_number
from proxymix.controllers.gradient_rules import gradient_conflicts
from proxymix.controllers.instruction_rules import InstructionDistances
from proxymix.controllers.rule import Rule, Split
from proxymix.controllers.schedules import Shares, schedule, static_mixture
from proxymix.controllers.visible import example_counts, inverse_lengths
from proxymix.errors import UserError
from proxymix.types import Controller

if TYPE_CHECKING:
    from proxymix.continual import ContinualRun

SPLITS: Mapping[str, Callable[[ContinualRun], Split]] = {
    "random_examples": lambda run: partial(example_counts, run),
    "random_tokens": lambda run: partial(inverse_lengths, run),
    "grad_sim": lambda run: partial(gradient_conflicts, run),
    "inscl": InstructionDistances,
}
"""How a share is split, of the rules `<kind>_<percent>` that look at a run."""


@dataclass(frozen=True)
class Found:
    """What was chosen, tuned or learnt for rows of the table. Each mapping goes from the method's whole name."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """What stands for the last word of a name: `{"proportional_chosen": 40, "random_realised": 27.4, "ramp_chosen": 7}`, in the units of
    `proportional_40` and `ramp_7`."""
    schedules: Mapping[str, Shares] = field(default_factory=dict)
    """Replay shares `[task][stage]`: `{"schedule_tuned": …, "schedule_mean": …}`."""
    anchor_scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """A schedule's score of every anchor, where a past task has 1, `[task]`: `{"headroom": …}`; without it a schedule splits evenly."""
    mixtures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """A weight for every source of the run: `{"doremi": …}`."""


def rival(method: str, run: ContinualRun, found: Found | None = None) -> Controller:
    """The controller of row `method` for `run`; its name is `method`, whatever number was found for it.

    `grad_sim_<percent>`, `inscl_<percent>`, `random_examples_<percent>`, `random_tokens_<percent>`; whatever `found` has a schedule or a
    mixture for; and all that `baseline` knows. The last word of a name may be one that `found.numbers` has a number for.

    Args:
        method: row of the table.
        run: that the controller will steer; decisions look at its data and model as they are then.
        found: on the proxy, never on what the table shows.

    Raises:
        UserError: no such method, or a number out of its range.
    """
    found = found or Found()
    if method in found.schedules:
        return schedule(found.schedules[method], method, found.anchor_scores.get(method, ()))
    if method in found.mixtures:
        return static_mixture(found.mixtures[method], method)
    spelled = f"{method.rpartition('_')[0]}_{found.numbers[method]:.6f}" if method in found.numbers else method
    kind, percent = kind_and_number(spelled)
    if kind in SPLITS and 0 <= percent <= 100:
        return Rule(method, percent / 100, SPLITS[kind](run))
    try:
        controller = baseline(spelled)
    except UserError as error:
        others = ", ".join(f"{kind}_<0..100>" for kind in SPLITS)
        raise UserError(f"{error}; or {others}, or a row that a number, schedule or mixture was found for") from None
    controller.name = method
    return controller
