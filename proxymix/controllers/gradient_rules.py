"""GradSim: replays what the current task is pulling the model away from.

    probe rows of a source → gradient of the tuned weights;   g_i, g_current → max(0, −cos) → scores

The rows are those whose losses every controller reads: all decide on the same data, and a buffer that has been replayed often says little of
what the source loses. Every rank holds all tuned weights, so the one rank that decides computes whole gradients and there is nothing to
all-reduce; with weights sharded over ranks this would not do. Two gradients are held at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proxymix.controllers.rule import Scores
from proxymix.controllers.visible import visible_sources
from proxymix.data.encoding import stacked_shape
from proxymix.learners.learner import Learner
from proxymix.types import StageBoundary

if TYPE_CHECKING:
    from proxymix.continual import ContinualRun


def conflict(gradient: Tensor, current: Tensor) -> float:
    """max(0, −cos) of two gradients `[num_weights]`: 1 where a step for one undoes the other, 0 where they agree or one is 0.

    >>> conflict(torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0]))
    0.7071067690849304
    """
    return max(0.0, -float(torch.nn.functional.cosine_similarity(gradient, current, dim=0)))


def gradient_conflicts(run: ContinualRun, boundary: StageBoundary) -> Scores:
    """`conflict` of every replayable source with the current task, at the weights of now. Its operations are counted as validation.

    Raises:
        TypeError: the run's learner gives no gradients.
    """
    learner = run.learner
    if not isinstance(learner, Learner):
        raise TypeError(f"grad_sim needs a Learner, which gives gradients, got {type(learner).__name__}")
    sources = visible_sources(run, boundary)
    for source in sources.values():
        run.validation_flops += learner.shape.training_flops(stacked_shape([source.probe]))
    current = learner.gradient(sources[boundary.current.name].probe)
    return {source.name: conflict(learner.gradient(sources[source.name].probe), current) for source in boundary.sources if source.role != "current"}
