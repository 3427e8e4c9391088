"""Builds the shards of a dataset: sources -> plan -> tars.

The plan is a list of shards. Each is a pure function of its sources and arguments, and leaves a record in OUT/.build.
So a build that was killed resumes with the missing shards, on one machine or as the tasks of an array.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2

from shards.build.assemble import BuildSummary, finish, recover, summary_of
from shards.build.films import SourceFilm, Sources
from shards.build.options import BuildOptions, Execution, Task
from shards.build.progress import (
    PlanRecord,
    ShardRecord,
    check_rejects,
    digest_of,
    load_plan,
    load_shard_record,
    locked,
    refuse_foreign_folder,
    save_shard_record,
)
from shards.build.sample import build_sample
from shards.build.split import WITHOUT_LABEL
from shards.dataset import rle
from shards.dataset.check import LABELLED_SPLITS
from shards.dataset.keys import salt_check
from shards.dataset.manifest import FORMAT_VERSION, MANIFEST, read_manifest
from shards.dataset.table import MEMBERS, Shards
from shards.dataset.tar import index_tar, write_tar
from shards.errors import InputError, RejectedFilm
from shards.files import atomic_write, sha256_file
from shards.pool import WorkerDied, each_done
from shards.spreadsheet import inert
from shards.workers import fork_server

_DEFAULT_EXECUTION = Execution()


@dataclass(frozen=True)
class _ShardJob:
    name: str
    sources: tuple[SourceFilm, ...]
    out: Path
    options: BuildOptions
    salt: bytes

    @property
    def digest(self) -> str:
        """Digest of the inputs of this shard. A record with another digest is not reused."""
        inputs = [
            (s.key, s.image_id, s.split, [r.rle for r in s.labels] if s.labels else None, *_fingerprint(s))
            for s in self.sources
        ]
        return digest_of([FORMAT_VERSION, self.options.content(), salt_check(self.salt), inputs])


def build(
    sources: Sources,
    out: Path,
    options: BuildOptions,
    salt: bytes,
    execution: Execution = _DEFAULT_EXECUTION,
    on_film: Callable[[int], None] | None = None,
) -> BuildSummary | None:
    """Build the dataset in `out`, or a task's share of its shards.

    Args:
        sources: The films and their labels.
        out: Folder of the dataset. Finished shards of an earlier, unfinished build are reused.
        options: Options that decide the dataset.
        salt: Secret that keys the hashes of patients.
        execution: Workers, task of an array, append to a finished dataset, and rejects to accept.
        on_film: Called with the number of films of each finished shard.

    Returns:
        Counts of the dataset; None for a task, as `finalize` joins the tasks.

    Raises:
        InputError: The folder holds something else, a mask does not fit its film, or more films were rejected than
            accepted (after their list was written). Finished shards stay for the next run.
    """
    task, append = execution.task, execution.append
    refuse_foreign_folder(out)
    recover(out)
    finished = (out / MANIFEST).exists()
    if append and not finished:
        raise InputError(f"{out}: --append needs a finished dataset; build without it first")
    if append:
        sources = _new_sources(sources, out, options, salt)
    jobs = _plan(sources, out, options, salt, append)
    record = _record(jobs, sources, options, salt, append)
    if finished and (not append or not jobs):
        manifest = read_manifest(out)
        if not append and manifest["build_digest"] != record.digest:
            raise InputError(
                f"{out}: holds shards of other films or arguments; add films with --append, change the folds with "
                "'python -m shards finalize', or give a new folder with --out"
            )
        check_rejects(out, manifest["counts"]["rejected"], execution.max_rejects)
        return replace(summary_of(manifest), reused_shards=len(manifest["shards"]))
    with locked(out, shared=task is not None):
        _agree(out, record, task)
        share = jobs if task is None else jobs[task.number - 1 :: task.count]
        missing = [job for job in share if load_shard_record(out, job.name, job.digest) is None]
        if on_film and len(missing) < len(share):
            on_film(sum(len(job.sources) for job in share) - sum(len(job.sources) for job in missing))
        for job in _run(missing, execution.workers):
            if on_film:
                on_film(len(job.sources))
        if task is not None:
            return None
        summary = finish(out, record, options, salt, execution.max_rejects)
        return replace(summary, reused_shards=len(jobs) - len(missing))


def _record(
    jobs: Sequence["_ShardJob"], sources: Sources, options: BuildOptions, salt: bytes, append: bool
) -> PlanRecord:
    unlabelled = tuple((s.image_id, s.listed_path, sources.left_out_reason) for s in sources.left_out)
    duplicates = tuple((item.source.image_id, item.source.listed_path, str(item)) for item in sources.set_aside)
    named = tuple((job.name, job.digest) for job in jobs)
    arguments = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    # `id` shows in the image ids. Skipped files are left out, as they may change without the films.
    decisive = {name: value for name, value in arguments.items() if name != "id"}
    digest = digest_of([decisive, named, unlabelled, duplicates, append])
    if options.pseudonymise:  # the plan is in OUT, where no path may identify a patient
        arguments |= {name: True for name in ("groups_csv", "folds_csv") if arguments[name]}
    return PlanRecord(
        digest, arguments, salt_check(salt), append, named, unlabelled, duplicates, sources.skipped_counts
    )


def _agree(out: Path, record: PlanRecord, task: Task | None) -> None:
    """Save the plan. All tasks of an array must have the same one; a whole build may replace an unfinished build."""
    plan = load_plan(out)
    if task is not None and plan is not None and plan.digest != record.digest:
        raise InputError(
            f"{out}: other tasks are building other films or arguments here; give all tasks the same, "
            "or remove the folder"
        )
    record.save(out)


def _plan(sources: Sources, out: Path, options: BuildOptions, salt: bytes, append: bool) -> list[_ShardJob]:
    names = [shard["name"] for shard in read_manifest(out)["shards"]] if append else []
    step = options.samples_per_shard
    jobs = []
    for kind, films in (("train", sources.train), ("test", sources.test), ("unlabelled", sources.unlabelled)):
        first = 1 + max((int(name.split("-")[1].split(".")[0]) for name in names if name.startswith(kind)), default=-1)
        for number, start in enumerate(range(0, len(films), step), first):
            jobs.append(_ShardJob(f"{kind}-{number:05d}", tuple(films[start : start + step]), out, options, salt))
    return jobs


def _new_sources(sources: Sources, out: Path, options: BuildOptions, salt: bytes) -> Sources:
    """Return the films that the dataset does not hold. Raises InputError if it was built in another way."""
    dataset = Shards(out)
    if dataset.manifest["salt_check"] != salt_check(salt):
        raise InputError(f"{out}: was built with another patient salt; give its file with --patient-salt-file")
    decisive = {**options.content(), "id": options.id}
    # Options newer than the dataset had their defaults.
    built = {**vars(BuildOptions()), **dataset.manifest["arguments"]}
    different = [name for name, value in decisive.items() if built[name] != value]
    if different:
        option = different[0].replace("_", "-")
        raise InputError(f"{out}: was built with another --{option}; appended films need the same")
    row_of = {str(image_id): row for row, image_id in enumerate(dataset.column("image_id"))}
    for source in sources.films:
        if source.image_id in row_of:
            _check_known(source, dataset, row_of[source.image_id])
    return sources.without(row_of)


def _check_known(source: SourceFilm, dataset: Shards, row: int) -> None:
    split, stored = dataset.column("split")[row], dataset.column("rle")[row]
    if source.split == "unlabelled":  # the dataset has the film already, perhaps with its label
        return
    if (split in LABELLED_SPLITS) != (source.split in LABELLED_SPLITS) or split in WITHOUT_LABEL:
        raise InputError(
            f"{source.image_id}: is in split {split} of {dataset.folder}, not to be added as {source.split}"
        )
    texts = [label.rle for label in source.labels or ()]
    if texts and texts != [stored]:
        grid = dataset.grid(row)
        texts = [rle.encode(rle.decode_union(texts, grid.height, grid.width))]
    if texts and texts != [stored]:
        raise InputError(f"{source.image_id}: its label differs from the one in {dataset.folder}; build a new dataset")


def _run(jobs: Sequence[_ShardJob], workers: int) -> Iterator[_ShardJob]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            build_shard(job)
            yield job
        return
    try:
        yield from each_done(fork_server(__name__), _build_on_one_core, jobs, workers)
    except WorkerDied:
        raise InputError(
            "a worker of the build was killed; out of memory? check dmesg, then run the same command again with fewer "
            "--workers"
        ) from None


def _build_on_one_core(job: _ShardJob) -> None:
    cv2.setNumThreads(1)
    build_shard(job)


def build_shard(job: _ShardJob) -> ShardRecord:
    """Write a shard, its DALI index and its record, and return the record (plain JSON types)."""
    rows: list[dict[str, Any]] = []
    rejected: list[tuple[str, str, str]] = []
    warnings: Counter[str] = Counter()
    reencoded = 0
    tar_path = job.out / f"{job.name}.tar"
    with write_tar(tar_path) as writer:
        for source in job.sources:
            try:
                sample = build_sample(source, job.options, job.salt)
            except RejectedFilm as reason:
                rejected.append((source.image_id, source.listed_path, inert(str(reason))))
                continue
            writer.write({"__key__": source.key, **sample.members})
            row = {**sample.row, "shard": tar_path.name}
            for member in MEMBERS:
                content = next(
                    (c for extension, c in sample.members.items() if extension.split(".")[0] == member), None
                )
                row[f"{member}_size"] = None if content is None else len(content)
                row[f"{member}_crc32"] = None if content is None else zlib.crc32(content)
            rows.append(row)
            warnings.update(sample.warnings)
            reencoded += sample.reencoded
    offsets, index = index_tar(tar_path) if rows else ({}, "")
    for row in rows:
        for member in MEMBERS:
            row[f"{member}_offset"] = offsets.get((row["key"], member))
    record: ShardRecord = {
        "name": tar_path.name,
        "digest": job.digest,
        "bytes": tar_path.stat().st_size,
        "sha256": sha256_file(tar_path),
        "rows": rows,
        "rejected": rejected,
        "warnings": dict(warnings),
        "reencoded": reencoded,
    }
    if rows:
        atomic_write(tar_path.with_suffix(".idx"), index)
    else:
        tar_path.unlink()  # readers refuse a shard without samples
    save_shard_record(job.out, job.name, record)
    return record


def _fingerprint(source: SourceFilm) -> list[tuple[int, int]]:
    return [_size_and_time(path) for path in (source.path, source.mask_path) if path]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # removed since the folder was listed: reading it reports that
        return -1, -1
    return status.st_size, status.st_mtime_ns
