"""The one exception a person is meant to read: what is wrong, where, what was found, and the remedy."""


class UserError(Exception):
    """A mistake in the input or the surroundings, told in one message.

    Jobs print it without a traceback and exit with code 2. The message names the field, the rule, the value and the remedy.
    """
