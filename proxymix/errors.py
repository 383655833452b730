"""The one exception a person is meant to read: what is wrong, where, what was found, and the remedy."""


class UserError(Exception):
    """A mistake in the input or the surroundings, told in one message.

    Jobs print it without a traceback and exit with code 2. The message names the field, the rule, the value and the remedy.
    """


class NonFiniteLossError(UserError):
    """A loss or gradient became NaN or infinite; raised before the optimizer touched the weights."""

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

    def __str__(self) -> str:
        return (
            f"{self.what} at optimizer step {self.step} of {self.place}; no weight was changed and the last stage boundary is kept; "
            "lower the learning rate and give the run another name"
        )


class SupersededError(Exception):
    """Other workers have taken over what this process was at. Nobody's mistake: there is nothing for a person to mend."""


class UnfitRowError(UserError):
    """A row that nothing can be learnt from: its prompt or its answer is empty. A source may leave such rows out (`SourceConfig.unfit`)."""
