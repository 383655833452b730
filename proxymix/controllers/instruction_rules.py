"""InsCL: replays most what asks least like the current task.

    prompts of a source → mean input-token embedding of the base model [rows, width] → Wasserstein distance to the current task → scores

Left out of the original: its tagger, a large model that grades how informative an instruction is and thereby chooses rows *within* a source;
rows are drawn evenly here, as for every other method. Prompts come from buffers and the current task's training rows alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from proxymix.controllers.rule import Scores
from proxymix.controllers.visible import visible_sources
from proxymix.data.encoding import IGNORED, EncodedSplit
from proxymix.learners.learner import Learner
from proxymix.types import StageBoundary

if TYPE_CHECKING:
    from proxymix.continual import ContinualRun

PROMPTS = 64
"""Most prompts that stand for a source; the assignment is exact, and cubic in them."""


def wasserstein_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """W₁ between two samples of as many points, `[num_points, width]` each: the mean Euclidean way of the best one-to-one assignment.

    >>> wasserstein_distance(np.array([[0.0], [1.0]]), np.array([[1.0], [3.0]]))
    1.5
    """
    ways = cdist(first, second)
    return float(ways[linear_sum_assignment(ways)].mean())


class InstructionDistances:
    """Scores for a `Rule`: the distance of every replayable source's prompts to the current task's. Each pair is measured once."""

    def __init__(self, run: ContinualRun) -> None:
        """Args: `run` whose visible data and base model are used; nothing is read yet.

        Raises:
            TypeError: its learner gives no embeddings.
        """
        if not isinstance(run.learner, Learner):
            raise TypeError(f"inscl needs a Learner, which gives embeddings, got {type(run.learner).__name__}")
        self.run, self.learner = run, run.learner
        self._distances: dict[tuple[str, str], float] = {}

    def __call__(self, boundary: StageBoundary) -> Scores:
        """Distances at `boundary`, 0 for an empty buffer. Lookups are free (`proxymix.cost`), so no operations are counted."""
        sources, current = visible_sources(self.run, boundary), boundary.current.name
        replayable = [source.name for source in boundary.sources if source.role != "current"]
        if missing := [name for name in replayable if (name, current) not in self._distances]:
            table = self.learner.base_token_embeddings()
            for name in missing:
                self._distances[name, current] = _distance(sources[name].buffer, sources[current].train, table)
        return {name: self._distances[name, current] for name in replayable}


def prompt_embeddings(split: EncodedSplit, rows: NDArray[np.int64], table: Tensor) -> NDArray[np.float32]:
    """Mean embedding of the prompt's tokens, begin token included, of some rows of `split`, `[len(rows), width]`."""
    chosen = torch.from_numpy(rows)
    input_ids, labels = split.input_ids[chosen], split.labels[chosen]
    # The first label stands at the prompt's last token, which foretells the answer's first.
    last = (labels != IGNORED).int().argmax(dim=1, keepdim=True)
    inside = (torch.arange(input_ids.shape[1]) <= last).to(table.device)[..., None]
    embedded = torch.nn.functional.embedding(input_ids.to(table.device), table).float() * inside
    return np.asarray((embedded.sum(1) / inside.sum(1)).cpu().numpy())


def _distance(buffer: EncodedSplit, train: EncodedSplit, table: Tensor) -> float:
    """Between as many prompts of each, spread evenly over the rows: files may be sorted."""
    count = min(len(buffer), len(train), PROMPTS)
    if not count:
        return 0.0
    return wasserstein_distance(*(prompt_embeddings(split, np.arange(count) * len(split) // count, table) for split in (buffer, train)))
