"""The one exception that is the user's to fix."""


class UserError(ValueError):
    """A user's mistake: its message is one line that says what was wanted, what came, and what to do.

    The scripts print it on stderr and exit with status 2; every other exception keeps its traceback.
    """
