"""The data that may be looked at when a mixture is chosen, for rules that need more than losses: of visible sources, never test rows.

run, boundary → visible_sources → example_counts, inverse_lengths → Rule
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxymix.controllers.rule import Scores
from proxymix.data.encoding import EncodedSource
from proxymix.types import StageBoundary

if TYPE_CHECKING:
    from proxymix.continual import ContinualRun


def visible_sources(run: ContinualRun, boundary: StageBoundary) -> dict[str, EncodedSource]:
    """The sources of `boundary` by name, with their data. The one door to it: a later task is on the other side."""
    found = {source.name: source for source in run.visible}
    return {name: found[name] for name in boundary.names}


def example_counts(run: ContinualRun, boundary: StageBoundary) -> Scores:
    """Examples in every buffer: in proportion to them, each stored example is as likely as any other."""
    return {name: float(len(source.buffer)) for name, source in visible_sources(run, boundary).items()}


def inverse_lengths(run: ContinualRun, boundary: StageBoundary) -> Scores:
    """One over the mean tokens of a buffer's rows: in proportion to it, every source gives as many tokens; 0 for an empty buffer."""
    return {name: len(source.buffer) / max(source.buffer.num_tokens, 1) for name, source in visible_sources(run, boundary).items()}
