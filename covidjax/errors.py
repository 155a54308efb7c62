"""The one exception that means: the person at the keyboard can mend this."""


class UserError(Exception):
    """A mistake in a config, a path, a data file or a checkpoint.

    The message is one line: what was wrong, what is allowed, what to do. The commands in `launch/` print it
    without a traceback and end with exit status 2.
    """
