"""Local copies of shards: verified, copied once per node, resumable, and with errors of one clear line."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from builders import SALT
from damage import flip_bit

from pneumo_dist.data import local_copy
from pneumo_dist.data.local_copy import LOCK, copy_shards_locally, needed_bytes
from shards import locks
from shards.build.assemble import finalize
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions, Execution
from shards.build.sources import find_sources
from shards.dataset.manifest import local_copy_name
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample
from shards.errors import InputError
from shards.files import atomic_open
from shards.locks import try_signed_lock
from shards.phantom.dataset import synthesize
from shards.stored import open_append

BLOCK = 4096


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks small, so that these tars have as many as real ones, and waits short."""
    monkeypatch.setattr(local_copy, "BLOCK", BLOCK)
    monkeypatch.setattr(local_copy, "POLL_SECONDS", 0.005)


@pytest.fixture
def own_films(films: Shards, tmp_path: Path) -> Shards:
    """Return a copy of the films that a test may damage."""
    return Shards(Path(shutil.copytree(films.folder, tmp_path / "own")))


def all_rows(shards: Shards) -> npt.NDArray[np.int64]:
    return np.arange(len(shards))


def rows_of(shards: Shards, *numbers: int) -> npt.NDArray[np.int64]:
    """Return the last row of each of the tars with the given numbers."""
    names = [shards.manifest["shards"][number]["name"] for number in numbers]
    return np.array([np.flatnonzero(shards.column("shard") == name)[-1] for name in names])


def copies(shards: Shards, cache: Path) -> list[Path]:
    """Return the paths of the copies of a dataset's tars."""
    return [cache / local_copy_name(shard) for shard in shards.manifest["shards"]]


def state(cache: Path) -> dict[str, tuple[int, int]]:
    """Return inode and modification time of every file except the lock, to detect repeated copies."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cache.iterdir() if path.name != LOCK}


def everything(shards: Shards) -> list[bytes]:
    return [shards.read(row, member) for row in range(len(shards)) for member in ("image", "mask", "json")]


def in_a_fork(work: Callable[[], object]) -> int:
    """Run in a forked process and return its status as of os.waitpid."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_only_the_tars_of_the_rows_are_copied_byte_for_byte(films: Shards, tmp_path: Path) -> None:
    cache = tmp_path / "node" / "cache"
    reported: list[int] = []
    copied = copy_shards_locally(films, rows_of(films, 0, 2), cache, reported.append)
    first, second, third = copies(films, cache)
    assert set(state(cache)) == {first.name, third.name}
    assert not second.exists()
    for copy, shard in ((first, films.manifest["shards"][0]), (third, films.manifest["shards"][2])):
        assert copy.read_bytes() == (films.folder / shard["name"]).read_bytes()
    sizes = [shard["bytes"] for shard in films.manifest["shards"]]
    assert needed_bytes(films, rows_of(films, 0, 2)) == sum(reported) == sizes[0] + sizes[2]
    assert max(reported) <= BLOCK, "the bar does not move within a tar"
    assert copied.tars == cache
    assert copied.folder == films.folder


def test_every_row_reads_the_same_bytes_copied_or_not(own_films: Shards, tmp_path: Path) -> None:
    expected = everything(own_films)
    copied = copy_shards_locally(own_films, rows_of(own_films, 1), tmp_path / "cache")
    assert everything(copied) == expected
    copied.close()
    (own_films.folder / own_films.manifest["shards"][1]["name"]).unlink()
    assert everything(copied) == expected, "the tar is read from its copy"


def test_without_rows_no_tar_and_no_folder_are_needed(films: Shards, tmp_path: Path) -> None:
    none = np.array([], np.int64)
    assert needed_bytes(films, none) == 0
    assert everything(copy_shards_locally(films, none, tmp_path / "cache")) == everything(films)
    assert not (tmp_path / "cache").exists()


def test_a_second_call_copies_nothing_and_needs_no_lock(films: Shards, tmp_path: Path) -> None:
    copy_shards_locally(films, all_rows(films), tmp_path)
    before, reported = state(tmp_path), list[int]()
    (tmp_path / LOCK).unlink()
    copy_shards_locally(films, all_rows(films), tmp_path, reported.append)
    assert state(tmp_path) == before
    assert not (tmp_path / LOCK).exists()
    assert sum(reported) == needed_bytes(films, all_rows(films)), "the bar does not end full"


def test_other_folds_use_the_same_copies(own_films: Shards, tmp_path: Path) -> None:
    copy_shards_locally(own_films, all_rows(own_films), tmp_path / "cache")
    before, table = state(tmp_path / "cache"), own_films.manifest["table_sha256"]
    finalize(own_films.folder, {"folds": 3}, SALT)
    again = Shards(own_films.folder)
    assert again.manifest["table_sha256"] != table
    copy_shards_locally(again, all_rows(again), tmp_path / "cache")
    assert state(tmp_path / "cache") == before


def test_grown_dataset_copies_only_its_new_tars(own_films: Shards, tmp_path: Path) -> None:
    copy_shards_locally(own_films, all_rows(own_films), tmp_path / "cache")
    before = state(tmp_path / "cache")
    more = synthesize(tmp_path / "more", images=3, size=96, positive_rate=0.5, seed=11)
    sources = find_sources(FilmFolders(dicom=[more.dicom_dir]), LabelFiles(more.labels_csv))
    options = BuildOptions(image_size=96, folds=2, samples_per_shard=5)
    build(sources, own_films.folder, options, SALT, Execution(append=True))
    grown = Shards(own_films.folder)
    assert len(grown) == len(own_films) + 3
    copied = copy_shards_locally(grown, all_rows(grown), tmp_path / "cache")
    after = state(tmp_path / "cache")
    assert before.items() < after.items()
    assert len(after) == len(grown.manifest["shards"]) == len(before) + 1
    assert everything(copied) == everything(grown)


def test_tar_that_the_manifest_does_not_list_is_read_from_the_dataset(own_films: Shards, tmp_path: Path) -> None:
    expected, last = everything(own_films), own_films.manifest["shards"].pop()
    copied = copy_shards_locally(own_films, all_rows(own_films), tmp_path / "cache")
    assert local_copy_name(last) not in state(tmp_path / "cache")
    assert everything(copied) == expected


@pytest.mark.parametrize("damage", ["flipped", "longer", "shorter", "missing", "a folder"])
def test_bad_source_is_refused_by_name_and_leaves_no_copy(own_films: Shards, tmp_path: Path, damage: str) -> None:
    source = own_films.folder / own_films.manifest["shards"][1]["name"]
    if damage == "flipped":
        flip_bit(source, source.stat().st_size - 1)  # padding, which no member's CRC32 covers
    elif damage in ("longer", "shorter"):
        os.truncate(source, source.stat().st_size + (512 if damage == "longer" else -512))
    else:
        source.unlink()
    if damage == "a folder":
        source.mkdir()
    with pytest.raises(InputError, match=rf"^{source}: .*restore it from a copy or build again") as error:
        copy_shards_locally(own_films, all_rows(own_films), tmp_path / "cache")
    assert "\n" not in str(error.value)
    first = copies(own_films, tmp_path / "cache")[0]
    assert set(state(tmp_path / "cache")) == {first.name}, "only the copies finished before must stay"


def test_a_manifest_with_a_wrong_size_is_refused(own_films: Shards, tmp_path: Path) -> None:
    own_films.manifest["shards"][0]["bytes"] += 1
    with pytest.raises(InputError, match=r"train-00000\.tar: differs from the manifest"):
        copy_shards_locally(own_films, all_rows(own_films), tmp_path / "cache")
    assert state(tmp_path / "cache") == {}


class Stop(Exception):
    """Raised by a caller to stop the copy."""


def test_a_stop_in_the_middle_of_a_tar_leaves_only_whole_tars(films: Shards, tmp_path: Path) -> None:
    reported: list[int] = []

    def stop(count: int) -> None:
        reported.append(count)
        if sum(reported) > films.manifest["shards"][0]["bytes"]:
            raise Stop

    with pytest.raises(Stop):
        copy_shards_locally(films, all_rows(films), tmp_path, stop)
    first, *others = copies(films, tmp_path)
    before = state(tmp_path)
    assert set(before) == {first.name}
    copied = copy_shards_locally(films, all_rows(films), tmp_path)
    assert set(state(tmp_path)) == {copy.name for copy in (first, *others)}
    assert before.items() < state(tmp_path).items(), "the finished tar was copied again"
    assert everything(copied) == everything(films)


def test_copy_resumes_after_a_killed_process_and_removes_its_temporary(films: Shards, tmp_path: Path) -> None:
    reported: list[int] = []

    def die(count: int) -> None:
        reported.append(count)
        if sum(reported) > films.manifest["shards"][0]["bytes"] + BLOCK:
            os.kill(os.getpid(), signal.SIGKILL)

    ended = in_a_fork(lambda: copy_shards_locally(films, all_rows(films), tmp_path, die))
    assert os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL
    first, *_ = copies(films, tmp_path)
    before = state(tmp_path)
    assert len(before) == 2 and first.name in before, "a whole tar and a temporary"
    foreign = [tmp_path / ".X11.tmp", tmp_path / "notes.tmp", tmp_path / ".train-00000.tar.abc.tmp"]
    for path in foreign:
        path.touch()
    copied = copy_shards_locally(films, all_rows(films), tmp_path)
    assert set(state(tmp_path)) == {path.name for path in (*copies(films, tmp_path), *foreign)}
    assert state(tmp_path)[first.name] == before[first.name]
    assert everything(copied) == everything(films)


def _race(folder: Path, cache: Path, barrier: Any, results: Any) -> None:
    """Copy from another process; report how many tars it copied and the bytes reported to it."""
    made, reported, real = list[Path](), list[int](), atomic_open

    def counted(path: Path) -> Any:
        made.append(path)
        return real(path)

    def slow(count: int) -> None:
        reported.append(count)
        time.sleep(0.002)  # lets the others run in the middle of a copy

    mock.patch.object(local_copy, "atomic_open", counted).start()
    shards = Shards(folder)
    barrier.wait(60)
    copied = copy_shards_locally(shards, all_rows(shards), cache, slow)
    results.put((len(made), sum(reported), everything(copied) == everything(shards)))


def test_concurrent_processes_copy_each_tar_once(films: Shards, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_race, args=(films.folder, tmp_path, barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    made, reported, same = zip(*[results.get(timeout=60) for _ in workers], strict=True)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert sum(made) == 3, made
    assert set(reported) == {needed_bytes(films, all_rows(films))}, "a bar does not end full"
    assert all(same)
    assert len(state(tmp_path)) == 3


def test_a_waiting_process_copies_nothing_and_can_be_stopped(films: Shards, tmp_path: Path) -> None:
    calls: list[int] = []

    def stop(count: int) -> None:
        calls.append(count)
        if len(calls) == 5:
            raise Stop

    with (tmp_path / LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(Stop):
            copy_shards_locally(films, all_rows(films), tmp_path, stop)
    assert calls == [0] * 5
    assert state(tmp_path) == {}


def test_a_waiting_process_says_whom_it_waits_for(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "FIRST_SECONDS", 0.0)
    told, calls = list[str](), list[int]()

    def stop(count: int) -> None:
        calls.append(count)
        if len(calls) == 10:
            raise Stop

    with open_append(tmp_path / LOCK) as stream:
        assert try_signed_lock(stream)
        with pytest.raises(Stop):
            copy_shards_locally(films, all_rows(films), tmp_path, stop, told.append)
    (line,) = told
    assert line.startswith(f"process {os.getpid()} on ")


def test_waiting_process_continues_as_soon_as_its_tars_exist(films: Shards, tmp_path: Path) -> None:
    """It does not wait for other tars."""
    wanted, finished = rows_of(films, 0), copies(films, tmp_path)[0]
    calls: list[int] = []

    def finish_elsewhere(count: int) -> None:
        calls.append(count)
        if len(calls) == 3:
            shutil.copy(films.folder / films.manifest["shards"][0]["name"], finished)
        assert len(calls) < 100

    with (tmp_path / LOCK).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        copied = copy_shards_locally(films, wanted, tmp_path, finish_elsewhere)
    assert sum(calls) == needed_bytes(films, wanted)
    assert everything(copied) == everything(films)


def test_copy_of_another_size_is_replaced(films: Shards, tmp_path: Path) -> None:
    copy_shards_locally(films, all_rows(films), tmp_path)
    cut, *others = copies(films, tmp_path)
    before = state(tmp_path)
    os.truncate(cut, 1000)
    copied = copy_shards_locally(films, all_rows(films), tmp_path)
    after = state(tmp_path)
    assert after[cut.name] != before[cut.name]
    assert all(after[copy.name] == before[copy.name] for copy in others)
    assert everything(copied) == everything(films)


def test_flipped_byte_in_a_copy_is_found_on_reading_and_fixed_as_the_message_says(
    films: Shards, tmp_path: Path
) -> None:
    copied = copy_shards_locally(films, all_rows(films), tmp_path)
    copy, row = copies(films, tmp_path)[1], int(rows_of(films, 1)[0])
    flip_bit(copy, int(films.column("image_offset")[row]) + 20)
    with pytest.raises(CorruptSample, match=rf"^{copy}: .*{films.column('key')[row]}.*remove this file"):
        copied.read(row, "image")
    copy.unlink()
    assert everything(copy_shards_locally(films, all_rows(films), tmp_path)) == everything(films)


def test_lack_of_space_is_reported_before_copying(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_shards_locally(films, rows_of(films, 0), tmp_path)
    before, left = state(tmp_path), needed_bytes(films, rows_of(films, 1, 2))
    free = left - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(InputError) as error:
        copy_shards_locally(films, all_rows(films), tmp_path)
    text = str(error.value)
    assert text.startswith(f"data.cache_dir {tmp_path}: ")
    assert f"take {left / 1e9:.3f} GB, {free / 1e9:.3f} GB are free" in text
    assert "give another data.cache_dir, or null" in text
    assert state(tmp_path) == before
    free = left
    copy_shards_locally(films, all_rows(films), tmp_path)
    assert len(state(tmp_path)) == 3, "only the missing tars have to fit"


def test_sizes_are_given_in_gigabytes(films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000_000))
    tar = {**films.manifest["shards"][0], "bytes": 12_345_000_000}
    with pytest.raises(InputError, match=r"take 12\.345 GB, 1\.500 GB are free"):
        local_copy._copy_all([tar], films.folder, tmp_path, lambda count: None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_in_the_middle_is_one_clear_error(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("shards.files.os.fsync", fail)
        with pytest.raises(InputError, match=rf"^data.cache_dir {tmp_path}: cannot hold.*or null to read") as error:
            copy_shards_locally(films, all_rows(films), tmp_path)
    assert os.strerror(number) in str(error.value)
    assert state(tmp_path) == {}
    copy_shards_locally(films, all_rows(films), tmp_path)
    assert len(state(tmp_path)) == 3


@pytest.mark.parametrize("below", [False, True])
def test_cache_dir_that_is_not_a_folder_is_refused(films: Shards, tmp_path: Path, below: bool) -> None:
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "below" if below else tmp_path / "file"
    with pytest.raises(InputError, match=rf"^data.cache_dir {cache}: .*give another data.cache_dir, or null") as error:
        copy_shards_locally(films, all_rows(films), cache)
    assert ("Not a directory" if below else "File exists") in str(error.value)


def test_links_in_the_cache_are_replaced_or_refused_and_never_written_through(films: Shards, tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", tmp_path / "other"
    cache.mkdir()
    copy = copies(films, cache)[0]
    other.write_bytes(bytes(films.manifest["shards"][0]["bytes"]))
    copy.symlink_to(other)
    copy_shards_locally(films, all_rows(films), cache)
    assert (
        not copy.is_symlink() and copy.read_bytes() == (films.folder / films.manifest["shards"][0]["name"]).read_bytes()
    )
    assert not any(other.read_bytes())
    copy.unlink()
    (cache / LOCK).unlink()
    (cache / LOCK).symlink_to(tmp_path / "new")
    with pytest.raises(InputError, match="is a symbolic link"):
        copy_shards_locally(films, all_rows(films), cache)
    assert not (tmp_path / "new").exists()
