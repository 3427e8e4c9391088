"""The one error that a person can mend."""

from collections.abc import Sequence


class InputError(ValueError):
    """Bad usage or bad input: the message is one line that names the file or key and the mend.

    The command lines print it without a traceback and exit with code 2.
    """


class InputErrors(InputError):
    """Several at once; the command lines print a line for each."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = tuple(messages)


class RejectedFilm(InputError):
    """A film that cannot enter the shards; the message is the reason written to rejected.csv."""
