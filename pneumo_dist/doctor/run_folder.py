"""Whether the run folder can hold a run: whole files, links, room, a clock that agrees, and all nodes see it."""

import os
import secrets
import tempfile
import time
from pathlib import Path

from pneumo_dist.doctor.findings import Finding, error, ok, size_of, warning
from shards.errors import os_fix
from shards.files import atomic_symlink, atomic_write

CONTENT_BYTES = 4 * 2**20
SKEW_SECONDS = 2.0
YEARS = range(2024, 2100)
LOCAL_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "vfat"})


def check_run_folder(runs: Path, nodes: int, mounts: str) -> list[Finding]:
    """Look at the run folder, or at the folder that it would be made in; nothing is left behind.

    `mounts` is the text of /proc/self/mountinfo.
    """
    try:
        folder = existing(runs)
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder, ignore_cleanup_errors=True) as scratch:
            findings = [*check_writes(Path(scratch), runs), *check_clock(*clock_readings(Path(scratch)))]
    except OSError as fault:
        return [_refused(fault, runs)]
    return [*findings, *check_sharing(folder, nodes, mounts)]


def existing(runs: Path) -> Path:
    """Return the folder, or the nearest above it that is there."""
    absolute = runs.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def _refused(fault: OSError, runs: Path) -> Finding:
    fix = os_fix(fault, "another --runs") or "give --runs on another file system"
    return error("run folder", f"{runs}: {fault.strerror or fault}", fix)


def check_writes(scratch: Path, runs: Path) -> list[Finding]:
    """Do write, fsync, rename over a file, fsync of the folder and links work, as checkpoints need them?"""
    content, path = secrets.token_bytes(CONTENT_BYTES), scratch / "checkpoint"
    try:
        atomic_write(path, b"the file before")
        atomic_write(path, content)
        is_whole = path.read_bytes() == content
    except OSError as fault:
        return [_refused(fault, runs)]
    other = "give --runs on another file system"
    if not is_whole:
        return [error("run folder", f"{runs}: a file reads back otherwise than it was written", other)]
    try:
        atomic_symlink(scratch / "last", path.name)
        is_linked = (scratch / "last").read_bytes() == content
    except OSError:
        is_linked = False
    if not is_linked:
        return [error("run folder", f"{runs}: no symbolic links, which point to the last and best checkpoint", other)]
    return [ok("run folder", f"{runs}: write, fsync, rename over a file and links work")]


def clock_readings(scratch: Path) -> tuple[float, float, float, float]:
    """Return seconds: the local clock before a file is written, the file's time, the local clock after it, and by how
    much the monotonic clock differs from it over that time."""
    steady, before = time.monotonic(), time.time()
    path = scratch / "clock"
    with path.open("wb") as stream:
        stream.write(b"now")
        stream.flush()
        os.fsync(stream.fileno())
    written = path.stat().st_mtime
    after = time.time()
    return before, written, after, (time.monotonic() - steady) - (after - before)


def check_clock(before: float, written: float, after: float, drift: float) -> list[Finding]:
    """Does this node's clock agree with that of the file system, by which others judge its heartbeats?"""
    mend = "set the clock of this node and of the file server by NTP (chronyc tracking, timedatectl)"
    year = time.gmtime(after).tm_year
    if year not in YEARS:
        return [warning("clock", f"this node is in the year {year}", mend)]
    if abs(drift) > SKEW_SECONDS:
        return [warning("clock", f"this node's clock moved by {-drift:.1f} s while a file was written", mend)]
    skew = written - after if written > after else min(0.0, written - before)
    if abs(skew) > SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        return [warning("clock", f"the run folder's is {abs(skew):.1f} s {side} this node's: heartbeats mislead", mend)]
    return [ok("clock", f"agrees with the run folder's within {SKEW_SECONDS:.0f} s")]


def check_room(free: int, one: int, needed: int, runs: Path) -> list[Finding]:
    """Is there room for a checkpoint, of `one` bytes, and for all that training keeps, `needed` bytes more than now?"""
    found = f"{size_of(free)} free at {runs}, checkpoints take {size_of(max(needed, one))}"
    mend = "free some space, or give another --runs; a stage keeps its top_k checkpoints and the newest two"
    if free < one:
        return [error("room", f"{size_of(free)} free at {runs}, one checkpoint takes {size_of(one)}", mend)]
    if free < needed:
        return [warning("room", found, mend)]
    return [ok("room", found)]


def check_sharing(folder: Path, nodes: int, mounts: str) -> list[Finding]:
    """Do several nodes see one run folder? Every rank opens the checkpoints that rank 0 has written."""
    kind = file_system(folder, mounts)
    if nodes > 1 and kind in LOCAL_SYSTEMS:
        mend = "give --runs on a file system that all nodes share (NFS, Lustre, GPFS, BeeGFS)"
        return [warning("file system", f"{folder} is on {kind}, which other nodes may not see", mend)]
    return [ok("file system", kind)] if kind else []


def file_system(folder: Path, mounts: str) -> str:
    """Return the type of the file system that holds a folder, of the text of /proc/self/mountinfo; empty if unknown."""
    resolved, best, kind = folder.resolve(), -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, types = left.split(), right.split()
        if len(fields) < 5 or not types:
            continue
        # mountinfo writes a space as \040.
        point = Path(fields[4].replace("\\040", " "))
        depth = len(point.parts)
        # A later mount on the same point covers the earlier one.
        if resolved.is_relative_to(point) and depth >= best:
            best, kind = depth, types[0]
    return kind
