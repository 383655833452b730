"""The one exception a person is meant to read: what is wrong, where, what was found, and the remedy."""

from __future__ import annotations

import math
from typing import Any


class UserError(Exception):
    """A mistake in the input or the surroundings, told in one message.

    Jobs print it without a traceback and exit with code 2. The message names the field, the rule, the value and the remedy.
    """


class NonFiniteLossError(UserError):
    """A loss or gradient became NaN or infinite; in a step, it is raised before the optimizer touched the weights."""

    def __init__(self, what: str, step: int, place: str = "the task", *, row: int | None = None, replica: int = 0) -> None:
        """Says what, when and where.

        Args:
            what: became what.
            step: optimizer step of the task, from 0.
            place: the task, stage and source, as far as the raiser knows them.
            row: of the global batch, if one is to blame.
            replica: whose batch.
        """
        super().__init__(what, step, place)  # All that the message needs: errors travel between workers.
        self.what, self.step, self.place, self.row, self.replica = what, step, place, row, replica

    @classmethod
    def of(cls, loss: float, norm: float, step: int, **place: Any) -> NonFiniteLossError:
        """Of a step's loss and gradient norm, one of which is not finite."""
        return cls(f"gradient norm became {norm}" if math.isfinite(loss) else f"loss became {loss}", step, **place)

    def __str__(self) -> str:
        return (
            f"{self.what} at optimizer step {self.step} of {self.place}; the last stage boundary is kept; "
            "lower the learning rate and give the run another name"
        )


class SupersededError(Exception):
    """Other workers have taken over what this process was at. Nobody's mistake: there is nothing for a person to mend."""


class UnfitRowError(UserError):
    """A row that nothing can be learnt from: its prompt or its answer is empty. A source may leave such rows out (`SourceConfig.unfit`)."""
