"""An unfinished build: its plan, the records of its finished shards, and who may write.

OUT/.build holds plan.json (all tasks of a build must agree on it), one record per finished shard, and the lock.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shards.console import counted
from shards.dataset.manifest import BUILD_STATE, MANIFEST
from shards.errors import InputError
from shards.files import atomic_write
from shards.stored import open_append, try_lock

PLAN, LOCK = "plan.json", "lock"
REJECTED, UNLABELLED = "rejected.csv", "unlabelled.csv"
_DIGEST = "record_sha256"

Row = tuple[str, ...]
ShardRecord = dict[str, Any]


@dataclass(frozen=True)
class PlanRecord:
    """What plan.json keeps: enough to finish a build without its films.

    `jobs` are (shard name, digest of its inputs); the lists are rows of unlabelled.csv and rejected.csv. `skipped`
    counts files that are no films, by reason.
    """

    digest: str
    arguments: dict[str, Any]
    salt_check: str
    appends: bool
    jobs: tuple[tuple[str, str], ...]
    unlabelled: tuple[Row, ...]
    duplicates: tuple[Row, ...]
    skipped: dict[str, int] = field(default_factory=dict)

    def save(self, out: Path) -> None:
        """Write plan.json, unless it stands there already."""
        found = load_plan(out)
        if found is not None and found.digest == self.digest:
            return
        (out / BUILD_STATE).mkdir(parents=True, exist_ok=True)
        _write_record(out / BUILD_STATE / PLAN, vars(self))


def load_plan(out: Path) -> PlanRecord | None:
    """Return the plan of the unfinished build in a folder, None without one."""
    try:
        content = _read_record(out / BUILD_STATE / PLAN)
        jobs = tuple((name, digest) for name, digest in content.pop("jobs"))
        unlabelled, duplicates = (
            tuple(tuple(row) for row in content.pop(name)) for name in ("unlabelled", "duplicates")
        )
        return PlanRecord(**content, jobs=jobs, unlabelled=unlabelled, duplicates=duplicates)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return None  # a damaged plan is written again by the next build


def save_shard_record(out: Path, name: str, record: ShardRecord) -> None:
    """Record a finished shard."""
    _write_record(out / BUILD_STATE / f"{name}.json", record)


def load_shard_record(out: Path, name: str, digest: str) -> ShardRecord | None:
    """Return the record of a shard that is complete and was built from inputs with this digest, else None."""
    try:
        record: ShardRecord = _read_record(out / BUILD_STATE / f"{name}.json")
        is_whole = not record["rows"] or (out / record["name"]).stat().st_size == record["bytes"]
        return record if is_whole and record["digest"] == digest else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # missing or damaged: the shard is built again


def _write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record with a digest of its own: what a table is made of must be what was recorded."""
    atomic_write(path, json.dumps({**content, _DIGEST: digest_of(content)}))


def _read_record(path: Path) -> dict[str, Any]:
    """Return a record. Raises ValueError or TypeError where it is damaged, FileNotFoundError where there is none."""
    try:
        content = dict(json.loads(path.read_bytes()))
    except RecursionError:
        raise ValueError(path) from None
    if content.pop(_DIGEST, None) not in (None, digest_of(content)):  # 0.2.0 wrote none
        raise ValueError(path)
    return content


@contextmanager
def locked(out: Path, shared: bool = False) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when this process ends in whatever way.

    The tasks of an array share it, a whole build or a finalize has it alone; that one also clears away what killed
    writers left. Raises InputError where another build holds it.
    """
    (out / BUILD_STATE).mkdir(parents=True, exist_ok=True)
    with open_append(out / BUILD_STATE / LOCK) as stream:
        if not try_lock(stream, shared):
            raise InputError(f"{out}: another build is writing here; wait for it or give another --out")
        if not shared:
            for stale in [*out.glob(".*.tmp"), *(out / BUILD_STATE).glob(".*.tmp")]:
                stale.unlink()
        yield


def refuse_foreign_folder(out: Path) -> None:
    """Raise InputError for an output that is a file, or a folder with anything but a build of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not ((out / MANIFEST).exists() or (out / BUILD_STATE).is_dir()):
        raise InputError(f"{out}: is not empty and holds no unfinished build; give a new folder with --out")


def check_rejects(out: Path, count: int, most: int, rejected: Sequence[Row] = ()) -> None:
    """Raise InputError where more films were rejected than are allowed."""
    if count > most:
        first = f": first {rejected[0][1] or rejected[0][0]}: {rejected[0][2]}" if rejected else ""
        raise InputError(
            f"{counted(count, 'film')} rejected, --max-rejects {most} allows fewer{first}; "
            f"all in {out / REJECTED}; correct or remove them, or raise --max-rejects"
        )


def write_list(path: Path, rows: Sequence[Row]) -> None:
    """Write rejected.csv or unlabelled.csv: image id, file, reason."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "file", "reason"])
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def read_list(path: Path) -> list[Row]:
    """Return the rows of such a list, none where the file is missing. Raises InputError where it is damaged."""
    fix = "restore it from a copy, or remove it and go without its rows"
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [tuple(row) for row in csv.reader(stream)][1:]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not the list that a build wrote ({error}); {fix}") from None
    if any(len(row) != 3 for row in rows):
        raise InputError(f"{path}: not the list that a build wrote, of image id, file and reason; {fix}")
    return rows


def digest_of(value: object) -> str:
    """Return a SHA-256 over plain JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
