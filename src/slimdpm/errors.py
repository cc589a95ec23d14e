"""The one exception for a user's mistake: its text is the whole message, and the command line exits with 2."""


class SlimdpmError(Exception):
    """Something that the user can mend. The message says what is wrong and what to do, in one line."""
