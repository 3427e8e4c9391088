"""Atomic writes: readers see the old content or the new, and a failed write leaves nothing behind."""

import errno
import hashlib
import json
import os
import resource
from pathlib import Path

import pytest

from shards.files import (
    atomic_open,
    atomic_symlink,
    atomic_write,
    raise_open_files,
    sha256_file,
    write_json,
)


def test_a_file_has_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    atomic_write(path, "old")
    with atomic_open(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atomic_write(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic_open(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, atomic_open(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "umask", "expected"), [(0o666, 0o022, 0o644), (0o600, 0o022, 0o600), (0o666, 0, 0o666)]
)
def test_files_respect_the_umask(tmp_path: Path, mode: int, umask: int, expected: int) -> None:
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "file", b"", mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == expected


def test_a_link_is_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        atomic_symlink(tmp_path / "link", name)
        assert (tmp_path / "link").read_text() == name
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "link"}


def test_json_is_indented_and_ends_with_a_line_break(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, None]}
    assert text.startswith('{\n "b"') and text.endswith("}\n")


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_the_limit_of_open_files_is_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
