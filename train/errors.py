"""The error a user can put right."""


class UserError(Exception):
    """A mistake in a config, a data set or a work directory; shown as one sentence, without a traceback."""
