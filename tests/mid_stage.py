"""A worker that comes to a halt in the middle of a stage, for whoever strikes there.

python -m tests.mid_stage <flag> <arguments of jobs.tune_target> → the flag appears within the second task → … → the worker is killed, or let go
"""

import sys
import time
from pathlib import Path

from proxymix.learners.large import LargeLearner

AT = (1, 0)
"""Task and stage. There is a checkpoint of another task's before it, and another stage behind it."""


def arm(flag, strike):
    """From now on this process, at its second optimizer step, writes `flag` and lets `strike` happen, once."""
    train_steps, steps = LargeLearner.train_steps, []

    def struck(learner, batches):
        steps.append(batches)
        if len(steps) == 2:
            flag.write_text("here")
            strike()
        return train_steps(learner, batches)

    LargeLearner.train_steps = struck


def let_go(flag):
    """Who waits at `flag` goes on."""
    flag.with_suffix(".go").write_text("")


class Halting:
    """A controller whose stage at `AT` halts, the first time that it comes there."""

    def __init__(self, controller, flag):
        self.controller, self.flag, self.name = controller, flag, controller.name

    def decide(self, boundary):
        if (boundary.task_index, boundary.stage_index) == AT and not self.flag.exists():
            arm(self.flag, self._wait)
        return self.controller.decide(boundary)

    def close(self):
        self.controller.close()

    def _wait(self):
        deadline = time.monotonic() + 600
        while not self.flag.with_suffix(".go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def main():
    from jobs import tune_target
    from jobs.entry import launch

    flag, choose = Path(sys.argv.pop(1)), tune_target.controller_for
    tune_target.controller_for = lambda *known: Halting(choose(*known), flag)
    launch(tune_target.job)


if __name__ == "__main__":
    main()
