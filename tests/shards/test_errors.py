"""The fixes for errors of the operating system."""

import errno
import os

import pytest

from shards.errors import InputErrors, os_fix


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.ENOSPC, "free some space, or give another --out"),
        (errno.EDQUOT, "free some of your quota, or give another --out"),
        (errno.EROFS, "it is mounted read-only: give another --out"),
        (errno.EACCES, "change its permissions, or give another --out"),
        (errno.ENOTDIR, "a folder is expected there: give another --out"),
        (errno.ENAMETOOLONG, "give a shorter path"),
        (errno.EIO, None),
    ],
)
def test_what_users_can_fix_has_a_fix(code: int, fix: str | None) -> None:
    assert os_fix(OSError(code, os.strerror(code)), "another --out") == fix


def test_an_error_without_a_number_has_no_fix() -> None:
    assert os_fix(OSError("unknown")) is None


def test_several_errors_keep_their_messages() -> None:
    errors = InputErrors(["a.csv: empty", "b.csv: missing"])
    assert errors.messages == ("a.csv: empty", "b.csv: missing")
    assert str(errors) == "a.csv: empty; b.csv: missing"
