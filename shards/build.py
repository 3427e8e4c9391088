"""The preprocessing job: sources -> shards, table and manifest.

The plan is a list of shards, each a pure function of its sources and arguments. A finished shard leaves a part
record beside it in OUT/.build, so that a build that was killed finishes what is missing; table and manifest come last.
"""

import csv
import fcntl
import hashlib
import io
import json
import multiprocessing
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2

from shards.errors import InputError, RejectedFilm
from shards.files import atomic_open, atomic_write, sha256_file
from shards.folds import HOLDOUT, assign_folds, check_split
from shards.keys import salt_check
from shards.members import index_tar
from shards.sample import build_sample
from shards.sources import Source, Sources
from shards.table import FORMAT_VERSION, MANIFEST, MEMBERS, TABLE, read_manifest, write_manifest, write_table

PARTS = ".build"
REJECTED, UNLABELLED = "rejected.csv", "unlabelled.csv"


@dataclass(frozen=True)
class BuildOptions:
    """What decides the bytes of a build besides its sources."""

    image_size: int = 512
    folds: int = 5
    holdout: float = 0.0
    seed: int = 0
    samples_per_shard: int = 512
    label_size: int | None = None
    codec: str = "png"

    def __post_init__(self) -> None:
        if not 32 <= self.image_size <= 8192:
            raise InputError(f"--image-size {self.image_size}: give 32 to 8192 pixels")
        if self.samples_per_shard < 1:
            raise InputError(f"--samples-per-shard {self.samples_per_shard}: give at least 1")
        if self.label_size is not None and self.label_size < 1:
            raise InputError(f"--label-size {self.label_size}: give at least 1 pixel")
        check_split(self.folds, self.holdout, self.seed)


@dataclass(frozen=True)
class BuildSummary:
    """Counts of a finished build."""

    train: int
    positives: int
    holdout: int
    test: int
    patients: int
    unlabelled: int
    rejected: int
    shards: int
    reused_shards: int


@dataclass(frozen=True)
class _ShardJob:
    name: str
    sources: tuple[Source, ...]
    out: Path
    options: BuildOptions
    salt: bytes

    @property
    def digest(self) -> str:
        """Identifies the inputs of this shard: a part record with another digest is not reused."""
        inputs = [
            (s.key, s.image_id, s.split, [r.rle for r in s.labels] if s.labels else None, *_fingerprint(s))
            for s in self.sources
        ]
        return _digest([FORMAT_VERSION, self.options.image_size, self.options.label_size, self.options.codec, inputs])


def build(
    sources: Sources,
    out: Path,
    options: BuildOptions,
    salt: bytes,
    workers: int = 1,
    max_rejects: int = 0,
    on_film: Callable[[int], None] | None = None,
) -> BuildSummary:
    """Build the dataset in `out`; `on_film` hears how many films a finished shard took.

    Raises InputError for a folder that holds something else, a mask that does not fit its film, and more than
    `max_rejects` rejected films (their list is written first); finished shards stay for the next run.
    """
    jobs = _plan(sources, out, options, salt)
    left_out = [source.image_id for source in (*sources.unlabelled, *(source for source, _ in sources.duplicates))]
    digest = _digest([asdict(options), [job.digest for job in jobs], left_out, salt_check(salt)])
    refuse_foreign_folder(out)
    if (out / MANIFEST).exists():
        manifest = read_manifest(out)
        if manifest["build_digest"] != digest:
            raise InputError(f"{out}: holds shards of other films or arguments; give a new folder with --out")
        _check_rejects(out, manifest["counts"]["rejected"], max_rejects)
        return BuildSummary(**manifest["counts"], reused_shards=manifest["counts"]["shards"])
    (out / PARTS).mkdir(parents=True, exist_ok=True)
    with _locked(out):
        return _build(jobs, sources, out, options, salt, digest, workers, max_rejects, on_film)


def _build(
    jobs: Sequence[_ShardJob],
    sources: Sources,
    out: Path,
    options: BuildOptions,
    salt: bytes,
    digest: str,
    workers: int,
    max_rejects: int,
    on_film: Callable[[int], None] | None,
) -> BuildSummary:
    for stale in [*out.glob(".*.tmp"), *(out / PARTS).glob(".*.tmp")]:
        stale.unlink()
    parts: dict[str, dict[str, Any]] = {}
    missing = []
    for job in jobs:
        part = _finished_part(job)
        if part is None:
            missing.append(job)
        else:
            parts[job.name] = part
            if on_film:
                on_film(len(job.sources))
    reused = len(parts)
    for job, part in _run(missing, workers):
        parts[job.name] = part
        if on_film:
            on_film(len(job.sources))
    ordered = [parts[job.name] for job in jobs]
    rejected = [(s.image_id, s.listed_path, reason) for s, reason in sources.duplicates]
    rejected += [tuple(entry) for part in ordered for entry in part["rejected"]]
    _write_list(out / REJECTED, sorted(rejected))
    _check_rejects(out, len(rejected), max_rejects, rejected)
    return _finish(sources, out, options, salt, ordered, len(rejected), digest, reused)


def _plan(sources: Sources, out: Path, options: BuildOptions, salt: bytes) -> list[_ShardJob]:
    return [
        _ShardJob(f"{name}-{number:05d}", tuple(films[start : start + options.samples_per_shard]), out, options, salt)
        for name, films in (("train", sources.train), ("test", sources.test))
        for number, start in enumerate(range(0, len(films), options.samples_per_shard))
    ]


def _check_rejects(out: Path, count: int, most: int, rejected: Sequence[Sequence[str]] = ()) -> None:
    if count > most:
        first = f": first {rejected[0][1]}: {rejected[0][2]}" if rejected else ""
        raise InputError(
            f"{count} films rejected, --max-rejects {most} allows fewer{first}; "
            f"all in {out / REJECTED}; mend or remove them, or raise --max-rejects"
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go when this process ends in whatever way."""
    with (out / PARTS / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another build is writing here; wait for it or give another --out") from None
        yield


def refuse_foreign_folder(out: Path) -> None:
    """Raise InputError for an output that is a file, or a folder with anything but a build of ours."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not ((out / MANIFEST).exists() or (out / PARTS).is_dir()):
        raise InputError(f"{out}: is not empty and holds no unfinished build; give a new folder with --out")


def _run(jobs: Sequence[_ShardJob], workers: int) -> Iterator[tuple[_ShardJob, dict[str, Any]]]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, build_shard(job)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        futures = {pool.submit(build_shard, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def build_shard(job: _ShardJob) -> dict[str, Any]:
    """Write one shard, its DALI index and its part record; return the record (plain JSON types)."""
    import webdataset  # here, because it imports torch, which whoever only reads shards does without

    rows: list[dict[str, Any]] = []
    rejected: list[tuple[str, str, str]] = []
    tar_path = job.out / f"{job.name}.tar"
    with (
        atomic_open(tar_path) as stream,
        webdataset.TarWriter(stream, encoder=False, mtime=0, user="", group="") as writer,
    ):
        for source in job.sources:
            try:
                row, members = build_sample(source, job.options.image_size, job.options.label_size, job.salt)
            except RejectedFilm as reason:
                rejected.append((source.image_id, source.listed_path, str(reason)))
                continue
            names = {"image": "image.png", "mask": "mask.png", "json": "json"}
            writer.write({"__key__": source.key, **{names[m]: content for m, content in members.items()}})
            for member in MEMBERS:
                content = members.get(member)
                row[f"{member}_size"] = None if content is None else len(content)
                row[f"{member}_crc32"] = None if content is None else zlib.crc32(content)
            rows.append({**row, "shard": tar_path.name})
    offsets, index = index_tar(tar_path) if rows else ({}, "")
    for row in rows:
        for member in MEMBERS:
            row[f"{member}_offset"] = offsets.get((row["key"], member))
    part = {
        "name": tar_path.name,
        "digest": job.digest,
        "bytes": tar_path.stat().st_size,
        "sha256": sha256_file(tar_path),
        "rows": rows,
        "rejected": rejected,
    }
    if rows:
        atomic_write(tar_path.with_suffix(".idx"), index)
    else:
        tar_path.unlink()  # no reader accepts a shard without a sample
    atomic_write(job.out / PARTS / f"{job.name}.json", json.dumps(part))
    return part


def _finished_part(job: _ShardJob) -> dict[str, Any] | None:
    try:
        part: dict[str, Any] = json.loads((job.out / PARTS / f"{job.name}.json").read_text())
        if part["rows"] and (job.out / part["name"]).stat().st_size != part["bytes"]:
            return None
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return part if part["digest"] == job.digest else None


def _finish(
    sources: Sources,
    out: Path,
    options: BuildOptions,
    salt: bytes,
    parts: Sequence[dict[str, Any]],
    rejected: int,
    digest: str,
    reused: int,
) -> BuildSummary:
    rows = [row for part in parts for row in part["rows"]]
    train = [row for row in rows if row["split"] == "train"]
    if train:
        folds = assign_folds(
            [row["group"] for row in train],
            [int(row["has_mask"]) for row in train],
            options.folds,
            options.holdout,
            options.seed,
        )
        for row, fold in zip(train, folds.tolist(), strict=True):
            row["split"], row["fold"] = ("holdout", None) if fold == HOLDOUT else ("train", fold)
    shards = [part for part in parts if part["rows"]]
    named = {Path(part["name"]).with_suffix(suffix).name for part in shards for suffix in (".tar", ".idx")}
    for stale in [path for path in out.iterdir() if path.suffix in {".tar", ".idx"} and path.name not in named]:
        stale.unlink()  # of an unfinished build with other arguments; whoever lists the tars would read it
    _write_list(out / UNLABELLED, [(s.image_id, s.listed_path, "no row in the labels") for s in sources.unlabelled])
    write_table(out / TABLE, rows)
    counts = {
        "train": sum(row["split"] == "train" for row in rows),
        "positives": sum(bool(row["has_mask"]) for row in rows),
        "holdout": sum(row["split"] == "holdout" for row in rows),
        "test": sum(row["split"] == "test" for row in rows),
        "patients": len({row["group"] for row in train}),
        "unlabelled": len(sources.unlabelled),
        "rejected": rejected,
        "shards": len(shards),
    }
    write_manifest(
        out,
        {
            "codec": options.codec,
            "image_size": options.image_size,
            "counts": counts,
            "arguments": asdict(options),
            "salt_check": salt_check(salt),
            "build_digest": digest,
            "table_sha256": sha256_file(out / TABLE),
            "shards": [
                {**{name: part[name] for name in ("name", "sha256", "bytes")}, "samples": len(part["rows"])}
                for part in shards
            ],
        },
    )
    shutil.rmtree(out / PARTS)
    return BuildSummary(**counts, reused_shards=reused)


def _write_list(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "file", "reason"])
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def _fingerprint(source: Source) -> list[tuple[int, int]]:
    paths = [source.path] + ([source.mask_path] if source.mask_path else [])
    return [(status.st_size, status.st_mtime_ns) for status in (path.stat() for path in paths)]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
