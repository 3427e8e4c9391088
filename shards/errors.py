"""The one error that a person can mend."""


class InputError(ValueError):
    """Bad usage or bad input: the message is one line that names the file or key and the mend.

    The command lines print it without a traceback and exit with code 2.
    """


class RejectedFilm(InputError):
    """A film that cannot enter the shards; the message is the reason written to rejected.csv."""
