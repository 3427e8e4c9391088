"""Turns finished shards into a dataset: groups and folds, table, lists, and the manifest last."""

import shutil
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.build.doubts import split_doubts
from shards.build.leaks import known_test_films
from shards.build.options import BuildOptions
from shards.build.progress import (
    REJECTED,
    UNLABELLED,
    PlanRecord,
    ShardRecord,
    check_rejects,
    load_plan,
    load_shard_record,
    locked,
    read_list,
    refuse_foreign_folder,
    write_list,
)
from shards.build.split import LABELLED, split_table
from shards.dataset.check import SPLITS
from shards.dataset.manifest import BUILD_STATE, COUNT_OF, MANIFEST, CountsModel, read_manifest, write_manifest
from shards.dataset.table import SCHEMA, TABLE, read_table, save_table
from shards.errors import InputError
from shards.files import sha256_file, sync_directory


@dataclass(frozen=True)
class BuildSummary:
    """Counts of a finished dataset, as stored in its manifest.

    `groups` counts the groups of labelled films: patients, joined by near-duplicates. `warnings` are about single
    films, `doubts` about groups, folds and labels.
    """

    train: int
    always_train: int
    positives: int
    holdout: int
    test: int
    groups: int
    unlabelled: int
    rejected: int
    shards: int
    reencoded: int
    warnings: dict[str, int]
    known_test: int
    unlabelled_split: int
    duplicate: int
    skipped: dict[str, int]
    doubts: list[str]
    reused_shards: int = 0

    @property
    def labelled(self) -> int:
        return self.train + self.holdout


def summary_of(manifest: dict[str, Any]) -> BuildSummary:
    """Return the counts of a manifest."""
    # The model adds defaults for counts that older builds did not write.
    counts = CountsModel.model_validate(manifest["counts"]).model_dump()
    known = {field.name: counts[field.name] for field in fields(BuildSummary) if field.name in counts}
    return BuildSummary(**known, doubts=manifest.get("doubts", []))


def finalize(out: Path, changes: dict[str, Any], salt: bytes, max_rejects: int = 0) -> BuildSummary:
    """Finish a build whose tasks are done, or split a finished dataset again. No tar is touched.

    `changes` are the split options that differ from those in the plan or the manifest. Raises InputError for missing
    shards, and for a damaged table or manifest.
    """
    if not out.is_dir():
        raise InputError(f"{out}: no such folder; build into it first")
    refuse_foreign_folder(out)
    recover(out)
    with locked(out):
        plan = load_plan(out)
        if plan is not None:
            for name, option in (("groups_csv", "--groups"), ("folds_csv", "--folds-csv")):
                if plan.arguments[name] is True and name not in changes:
                    raise InputError(f"{out}: its plan stores no path of a CSV; give {option} again")
            return finish(out, plan, options_of({**plan.arguments, **changes}), salt, max_rejects)
        manifest = read_manifest(out)
        if manifest["arguments"]["folds_csv"] is True and not {"folds", "folds_csv"} & set(changes):
            raise InputError(f"{out}: its folds came from a CSV; give it again with --folds-csv, or give --folds")
        options = options_of({**manifest["arguments"], **changes})
        table = split_table(read_table(out, manifest), options, salt)
        doubts = split_doubts(table, options, salt)
        summary = _write(out, table, {**manifest, "arguments": options.public()}, doubts)
        shutil.rmtree(out / BUILD_STATE)
        return summary


def options_of(arguments: dict[str, Any]) -> BuildOptions:
    """Return the options for the arguments of a command, a plan or a manifest.

    Paths of CSVs become None in the last two if these store only that there was one.
    """
    options = dict(arguments)
    for name in ("groups_csv", "folds_csv"):
        options[name] = Path(options[name]) if isinstance(options[name], str | Path) else None
    if options["duplicate_distance"] == -1:
        options["duplicate_distance"] = None
    unknown = sorted(set(options) - {field.name for field in fields(BuildOptions)})
    if unknown:
        raise InputError(f"arguments of another version, {', '.join(unknown)}; use the version that built the shards")
    return BuildOptions(**options)


def finish(out: Path, plan: PlanRecord, options: BuildOptions, salt: bytes, max_rejects: int) -> BuildSummary:
    """Join the records of a plan's shards into table and manifest. The caller must hold the lock."""
    rejected, missing = list(plan.duplicates), []
    tables, shards = [], []
    old = read_manifest(out) if plan.appends else None
    warnings = Counter(old["counts"]["warnings"] if old else {})
    for name, digest in plan.jobs:
        record = load_shard_record(out, name, digest)
        if record is None:
            missing.append(name)
            continue
        rejected += record["rejected"]
        warnings.update(record["warnings"])
        if record["rows"]:
            tables.append(pa.Table.from_pylist(record["rows"], schema=SCHEMA))
            shards.append(_described(record))
    if missing:
        raise InputError(f"{out}: {len(missing)} shards are not built yet, first {missing[0]}; run their tasks again")
    # A failed append has listed its rejects already. Under pseudonyms, films that share a name have equal rows.
    listed = Counter(read_list(out / REJECTED) if old else [])
    rejected = list((listed | Counter(sorted(map(tuple, rejected)))).elements())
    write_list(out / REJECTED, rejected)
    check_rejects(out, len(rejected), max_rejects, rejected)
    previous = read_table(out, old) if old else SCHEMA.empty_table()
    table = split_table(pa.concat_tables([previous, *tables]), options, salt, previous=len(previous))
    if old:
        shards = [*old["shards"], *shards]
    unlabelled = plan.unlabelled
    if old:
        ids = set(table["image_id"].to_pylist())  # with the films that have a label now, or were kept without
        listed_before = [row for row in read_list(out / UNLABELLED) if row[0] not in ids]
        unlabelled = tuple(sorted({*map(tuple, listed_before), *unlabelled}))
    write_list(out / UNLABELLED, unlabelled)
    named = {Path(shard["name"]).with_suffix(suffix).name for shard in shards for suffix in (".tar", ".idx")}
    for stale in [path for path in out.iterdir() if path.suffix in {".tar", ".idx"} and path.name not in named]:
        stale.unlink()  # left by an unfinished build with other arguments; tools that list the tars would read it
    manifest = {
        "arguments": options.public(),
        "salt_check": plan.salt_check,
        "build_digest": plan.digest,
        "counts": {"warnings": dict(sorted(warnings.items())), "skipped": plan.skipped},
        "shards": shards,
    }
    summary = _write(out, table, manifest, split_doubts(table, options, salt, appended=plan.appends))
    shutil.rmtree(out / BUILD_STATE)
    return summary


def _described(record: ShardRecord) -> dict[str, Any]:
    return {**{name: record[name] for name in ("name", "sha256", "bytes", "reencoded")}, "samples": len(record["rows"])}


def _write(out: Path, table: pa.Table, manifest: dict[str, Any], doubts: list[str]) -> BuildSummary:
    splits = table["split"].to_pylist()
    groups = {group for group, split in zip(table["group"].to_pylist(), splits, strict=True) if split in LABELLED}
    counts = {
        **{COUNT_OF.get(split, split): splits.count(split) for split in SPLITS},
        "positives": sum(map(bool, table["has_mask"].to_pylist())),
        "groups": len(groups),
        "unlabelled": len(read_list(out / UNLABELLED)),
        "rejected": len(read_list(out / REJECTED)),
        "shards": len(manifest["shards"]),
        "reencoded": sum(shard["reencoded"] for shard in manifest["shards"]),
        "warnings": manifest["counts"]["warnings"],
        "known_test": len(known_test_films(table)),
        "skipped": manifest["counts"].get("skipped", {}),
    }
    arguments = manifest["arguments"]
    content = {name: value for name, value in manifest.items() if name not in ("format", "format_version")}
    # Two files cannot be replaced at once. After a kill between them, `recover` finishes from BUILD_STATE.
    save_table(out / BUILD_STATE / TABLE, table)
    content |= {
        "codec": arguments["codec"],
        "image_size": arguments["image_size"],
        "counts": counts,
        "doubts": doubts,
        "table_sha256": sha256_file(out / BUILD_STATE / TABLE),
    }
    write_manifest(out / BUILD_STATE, content)
    (out / BUILD_STATE / TABLE).replace(out / TABLE)
    sync_directory(out)
    write_manifest(out, content)
    return summary_of({"counts": counts, "doubts": doubts})


def recover(out: Path) -> None:
    """Write the manifest of a build that was killed after its table. Do nothing in any other folder."""
    if not (out / BUILD_STATE / MANIFEST).exists():
        return
    with locked(out):
        try:
            manifest = read_manifest(out / BUILD_STATE)
            read_table(out, manifest)
        except InputError:  # the build was killed before the table, or another program changed it
            (out / BUILD_STATE / MANIFEST).unlink()
            return
        write_manifest(out, manifest)
        shutil.rmtree(out / BUILD_STATE)
