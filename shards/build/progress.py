"""State of an unfinished build: its plan, the records of its finished shards, and its lock.

OUT/.build contains plan.json (the same for all tasks of a build), one record per finished shard, and the lock.
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
from shards.locks import holder, try_signed_lock
from shards.spreadsheet import csv_text
from shards.stored import open_append, read_limited
from shards.temporaries import remove_all_unused

PLAN, LOCK = "plan.json", "lock"
REJECTED, UNLABELLED = "rejected.csv", "unlabelled.csv"
_DIGEST = "record_sha256"
# A film takes a few kilobytes of a record.
MOST_RECORD = 1 << 30

Row = tuple[str, ...]
ShardRecord = dict[str, Any]


@dataclass(frozen=True)
class PlanRecord:
    """Contents of plan.json, enough to finish a build without its films.

    `jobs` are pairs of shard name and digest of its inputs. `unlabelled` and `duplicates` are rows of unlabelled.csv
    and rejected.csv. `skipped` counts files that are not films, by reason.
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
        """Write plan.json, unless it exists with this digest."""
        plan = load_plan(out)
        if plan is not None and plan.digest == self.digest:
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
    """Write a record with a digest over it, as tables are made from records."""
    atomic_write(path, json.dumps({**content, _DIGEST: digest_of(content)}))


def _read_record(path: Path) -> dict[str, Any]:
    """Return a record. Raises ValueError or TypeError if it is damaged, FileNotFoundError if it is missing."""
    try:
        content = dict(json.loads(read_limited(path, MOST_RECORD, "build again")))
    except RecursionError:
        raise ValueError(path) from None
    if content.pop(_DIGEST, None) not in (None, digest_of(content)):  # 0.2.0 wrote none
        raise ValueError(path)
    return content


@contextmanager
def locked(out: Path, shared: bool = False) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when this process ends, however it ends.

    The tasks of an array share the lock. A whole build or a finalize holds it alone, and also removes temporary files
    of killed writers. Raises InputError if another build holds it.
    """
    (out / BUILD_STATE).mkdir(parents=True, exist_ok=True)
    with open_append(out / BUILD_STATE / LOCK) as stream:
        if not try_signed_lock(stream, shared):
            raise InputError(
                f"{out}: another build is writing here ({holder(out / BUILD_STATE / LOCK)}); wait for it or give "
                "another --out"
            )
        if not shared:
            for folder in (out, out / BUILD_STATE):
                remove_all_unused(folder)
        yield


def refuse_foreign_folder(out: Path) -> None:
    """Raise InputError for an output that is a file, or a folder with anything but a dataset or an unfinished build."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not ((out / MANIFEST).exists() or (out / BUILD_STATE).is_dir()):
        raise InputError(f"{out}: is not empty and holds no unfinished build; give a new folder with --out")


def check_rejects(out: Path, count: int, most: int, rejected: Sequence[Row] = ()) -> None:
    """Raise InputError if more films were rejected than allowed."""
    if count > most:
        first = f": first {rejected[0][1] or rejected[0][0]}: {rejected[0][2]}" if rejected else ""
        raise InputError(
            f"{counted(count, 'film')} rejected, --max-rejects {most} allows fewer{first}; "
            f"all in {out / REJECTED}; correct or remove them, or raise --max-rejects"
        )


def write_list(path: Path, rows: Sequence[Row]) -> None:
    """Write rejected.csv or unlabelled.csv: image id, file, reason."""
    atomic_write(path, csv_text([("image_id", "file", "reason"), *rows]))


def read_list(path: Path) -> list[Row]:
    """Return the rows of such a list, none if the file is missing. Raises InputError if it is damaged."""
    fix = "restore it from a copy, or remove it and lose its rows"
    if not path.exists():
        return []
    try:
        text = read_limited(path, MOST_RECORD, fix).decode()
        rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""))][1:]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a list that a build wrote ({error}); {fix}") from None
    if any(len(row) != 3 for row in rows):
        raise InputError(f"{path}: not a list that a build wrote, of image id, file and reason; {fix}")
    return rows


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value of plain JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
