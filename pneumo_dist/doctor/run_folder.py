"""Checks of the run folder: complete writes, links, an agreeing clock, and access from all nodes."""

import os
import secrets
import time
from pathlib import Path

from pneumo_dist.doctor.findings import Finding, error, ok, warning
from shards.errors import os_fix
from shards.files import atomic_symlink, atomic_write
from shards.temporaries import scratch_folder

CONTENT_BYTES = 4 * 2**20
SKEW_SECONDS = 2.0
YEARS = range(2024, 2100)
OTHER_FILE_SYSTEM = "give --runs on another file system"
LOCAL_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "f2fs", "vfat"})


def check_run_folder(runs: Path, nodes: int, mounts: str) -> list[Finding]:
    """Check the run folder, or the nearest existing parent, in a temporary folder that is removed afterwards.

    `mounts` is the text of /proc/self/mountinfo.
    """
    try:
        folder = nearest_existing(runs)
        with scratch_folder(folder, "doctor") as scratch:
            findings = [*check_writes(scratch, runs), *check_clock(*clock_readings(scratch))]
    except OSError as exception:
        return [_os_error(exception, runs)]
    return [*findings, *check_sharing(folder, nodes, mounts)]


def nearest_existing(runs: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    absolute = runs.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def _os_error(exception: OSError, runs: Path) -> Finding:
    fix = os_fix(exception, "another --runs") or OTHER_FILE_SYSTEM
    return error("run folder", f"{runs}: {exception.strerror or exception}", fix)


def check_writes(scratch: Path, runs: Path) -> list[Finding]:
    """Check what checkpoints need: write, fsync, rename over a file, fsync of the folder, and links."""
    content, path = secrets.token_bytes(CONTENT_BYTES), scratch / "checkpoint"
    try:
        atomic_write(path, b"old content")
        atomic_write(path, content)
        is_intact = path.read_bytes() == content
    except OSError as exception:
        return [_os_error(exception, runs)]
    if not is_intact:
        return [error("run folder", f"{runs}: a file does not read back as it was written", OTHER_FILE_SYSTEM)]
    try:
        atomic_symlink(scratch / "last", path.name)
        is_linked = (scratch / "last").read_bytes() == content
    except OSError:
        is_linked = False
    if not is_linked:
        message = f"{runs}: symbolic links do not work, but runs link to their last and best checkpoints"
        return [error("run folder", message, OTHER_FILE_SYSTEM)]
    return [ok("run folder", f"{runs}: write, fsync, rename over a file and links work")]


def clock_readings(scratch: Path) -> tuple[float, float, float, float]:
    """Write a file and return what the clocks say of it, all in seconds.

    Returns:
        The local time before the write, the file's modification time, the local time after the write, and by how much
        more the monotonic clock advanced in between than the local time.
    """
    monotonic, before = time.monotonic(), time.time()
    path = scratch / "clock"
    with path.open("wb") as stream:
        stream.write(b"now")
        stream.flush()
        os.fsync(stream.fileno())
    written = path.stat().st_mtime
    after = time.time()
    return before, written, after, (time.monotonic() - monotonic) - (after - before)


def check_clock(before: float, written: float, after: float, drift: float) -> list[Finding]:
    """Check that this node's clock agrees with that of the file system, because heartbeats are judged by both.

    The arguments are those that `clock_readings` returns.
    """
    fix = "set the clock of this node and of the file server by NTP (chronyc tracking, timedatectl)"
    year = time.gmtime(after).tm_year
    if year not in YEARS:
        return [warning("clock", f"this node's clock is in the year {year}", fix)]
    if abs(drift) > SKEW_SECONDS:
        return [warning("clock", f"this node's clock jumped by {-drift:.1f} s while a file was written", fix)]
    skew = written - after if written > after else min(0.0, written - before)
    if abs(skew) > SKEW_SECONDS:
        side = "ahead of" if skew > 0 else "behind"
        message = f"the run folder's clock is {abs(skew):.1f} s {side} this node's: heartbeats will mislead"
        return [warning("clock", message, fix)]
    return [ok("clock", f"agrees with the run folder's clock within {SKEW_SECONDS:.0f} s")]


def check_sharing(folder: Path, nodes: int, mounts: str) -> list[Finding]:
    """Check that all nodes see the same run folder, because every rank opens the checkpoints that rank 0 writes."""
    kind = file_system(folder, mounts)
    if nodes > 1 and kind in LOCAL_SYSTEMS:
        fix = "give --runs on a file system that all nodes share (NFS, Lustre, GPFS, BeeGFS)"
        return [warning("file system", f"{folder} is on {kind}, which other nodes may not see", fix)]
    return [ok("file system", kind)] if kind else []


def file_system(folder: Path, mounts: str) -> str:
    """Return the type of a folder's file system from the text of /proc/self/mountinfo; empty if unknown."""
    resolved, best, kind = folder.resolve(), -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, types = left.split(), right.split()
        if len(fields) < 5 or not types:
            continue
        # mountinfo escapes a space as \040.
        point = Path(fields[4].replace("\\040", " "))
        depth = len(point.parts)
        # A later mount at the same point hides the earlier one.
        if resolved.is_relative_to(point) and depth >= best:
            best, kind = depth, types[0]
    return kind
