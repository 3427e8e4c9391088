"""Errors that the user can fix, and the fixes for errors of the operating system."""

import errno
from collections.abc import Sequence

# `{}` is the alternative to the file or folder that the error names.
_OS_FIXES = {
    errno.ENOSPC: "free some space, or give {}",
    errno.EDQUOT: "free some of your quota, or give {}",
    errno.EROFS: "it is mounted read-only: give {}",
    errno.EACCES: "change its permissions, or give {}",
    errno.EPERM: "change its permissions, or give {}",
    errno.EISDIR: "a file is expected there",
    errno.ENOTDIR: "a folder is expected there: give {}",
    errno.EEXIST: "a folder is expected there: give {}",
    errno.ENAMETOOLONG: "give a shorter path",
}


class InputError(ValueError):
    """Bad usage or bad input. The message is one line that names the file or key and the fix.

    The command lines print it without a traceback and exit with code 2.
    """


class InputErrors(InputError):
    """Several input errors at once. The command lines print a line for each."""

    def __init__(self, messages: Sequence[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = tuple(messages)


class RejectedFilm(InputError):
    """A film that cannot enter the shards. The message is the reason written to rejected.csv."""


def os_fix(error: OSError, alternative: str = "another folder") -> str | None:
    """Return the fix for an error of the operating system, or None for an error that users cannot fix."""
    text = _OS_FIXES.get(error.errno or 0)
    return text and text.format(alternative)
