"""python -m shards: synthesise, build and verify datasets."""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from shards import console
from shards.build.assemble import finalize, options_of, recover
from shards.build.build import Task, build
from shards.build.films import Held
from shards.build.labels import load_labels
from shards.build.messages import skipped_lines, summary_lines
from shards.build.names import ID_KINDS
from shards.build.options import CODECS, BuildOptions
from shards.build.progress import PLAN, refuse_foreign_folder
from shards.build.sources import ABSENT_MASKS, find_sources
from shards.dataset.keys import load_salt, save_pseudonyms
from shards.dataset.table import BUILD_STATE, MANIFEST, Shards
from shards.dataset.verify import verify
from shards.errors import InputError
from shards.files import atomic_write, raise_open_files
from shards.film_options import film_options

FOLDER = console.PathType(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def app() -> None:
    """Turn chest films and run-length labels into WebDataset shards with a sample table."""
    raise_open_files()


@app.command()
@click.argument("out", type=FOLDER)
@click.option("--images", type=int, default=240, show_default=True, help="Number of films.")
@click.option("--size", type=int, default=512, show_default=True, help="Rows and columns of a film, in pixels.")
@click.option("--positive-rate", type=float, default=0.25, show_default=True, help="Share of films with a mask.")
@click.option("--seed", type=int, default=0, show_default=True)
def synth(out: Path, images: int, size: int, positive_rate: float, seed: int) -> None:
    """Write synthetic chest films (DICOM) and their label CSV to OUT, in the SIIM layout."""
    from shards.phantom.dataset import synthesize

    with console.progress(images, "film", "synth") as bar:
        made = synthesize(
            out, images=images, size=size, positive_rate=positive_rate, seed=seed, on_film=lambda: bar.update(1)
        )
    print(f"{made.films} films ({made.positives} positive, {made.patients} patients) in {made.dicom_dir}")
    print(f"{made.rle_rows} label rows in {made.labels_csv}")


SPLIT_OPTIONS = (
    click.option("--folds", type=int, default=5, show_default=True),
    click.option(
        "--holdout", type=float, default=0.0, show_default=True, help="Share never trained, selected or tuned on."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the folds."),
    click.option("--groups", "groups_csv", type=FOLDER, help="CSV of image_id and group, instead of patient ids."),
    click.option(
        "--folds-csv",
        type=FOLDER,
        help="CSV of image_id and fold: published folds. -1: holdout; stage_2, always_train: in every fold.",
    ),
    click.option(
        *("--duplicate-distance", "duplicate_distance"),
        type=int,
        default=BuildOptions.duplicate_distance,
        show_default=True,
        help="Bits of 256 in which near-duplicate films may differ; -1 leaves them apart.",
    ),
)
MAX_REJECTS = click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Rejected films that are put up with.",
)
SALT = click.option("--patient-salt-file", type=FOLDER, help="Secret that keys patient hashes.  [default: OUT.salt]")


def split_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide groups and folds."""
    for option in reversed(SPLIT_OPTIONS):
        command = option(command)
    return command


@app.command("build")
@click.option("--dicom", "dicom_dirs", type=FOLDER, multiple=True, help="Folder of DICOM films; may be repeated.")
@click.option("--images", "image_dirs", type=FOLDER, multiple=True, help="Folder of PNG/JPEG films; may be repeated.")
@click.option("--rle", "labels_path", type=FOLDER, help="Label CSV: image id, run-length mask or -1.")
@click.option("--masks", type=FOLDER, help="Folder of mask PNGs with the films' names, instead of --rle.")
@click.option(
    "--absent-mask",
    type=click.Choice(ABSENT_MASKS),
    default=ABSENT_MASKS[0],
    show_default=True,
    help="What films are that have no mask in --masks; negative takes an empty mask.",
)
@click.option("--always-train", "always_dirs", type=FOLDER, multiple=True, help="Labelled films that only ever train.")
@click.option("--test-dicom", "test_dicom_dirs", type=FOLDER, multiple=True, help="Unlabelled DICOM films.")
@click.option("--test-images", "test_image_dirs", type=FOLDER, multiple=True, help="Unlabelled PNG/JPEG films.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the shards.")
@click.option("--image-size", type=int, default=512, show_default=True, help="Side of the stored square, in pixels.")
@click.option(
    "--codec", type=click.Choice(CODECS), default="png", show_default=True, help="jpeg keeps the films' size."
)
@click.option("--label-size", type=int, help="Side of the labels' grid where it is not the film's own (PNG exports).")
@click.option("--samples-per-shard", type=int, default=512, show_default=True)
@film_options
@click.option(
    "--id",
    type=click.Choice(ID_KINDS),
    default=BuildOptions.id,
    show_default=True,
    help="Image ids: file names, or SOPInstanceUIDs where files share one name. Labels and masks go by them.",
)
@click.option("--pseudonymise", is_flag=True, help="Replace image ids; OUT.ids.csv keeps the map.")
@split_options
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default="all cores")
@click.option("--task", metavar="I/N", help="Build task I of N of an array; 'finalize' joins them.")
@click.option("--append", is_flag=True, help="Add the films that OUT does not hold yet, in shards of their own.")
@MAX_REJECTS
@SALT
def build_command(
    dicom_dirs: tuple[Path, ...],
    image_dirs: tuple[Path, ...],
    labels_path: Path | None,
    masks: Path | None,
    absent_mask: str,
    always_dirs: tuple[Path, ...],
    test_dicom_dirs: tuple[Path, ...],
    test_image_dirs: tuple[Path, ...],
    out: Path,
    workers: int,
    task: str | None,
    append: bool,
    max_rejects: int,
    patient_salt_file: Path | None,
    **arguments: Any,
) -> None:
    """Build shards, sample table and manifest from films and labels."""
    options = options_of(arguments)
    share = _task(task) if task else None
    labels = load_labels(labels_path) if labels_path else None
    refuse_foreign_folder(out)
    recover(out)
    finished = (out / MANIFEST).exists()
    held = Held(_held(out) if finished else frozenset())
    if append and options.pseudonymise:
        held = replace(held, salt=_salt(out, patient_salt_file, create=False))
    sources = find_sources(
        *(dicom_dirs, image_dirs, masks, labels, labels_path, test_dicom_dirs, test_image_dirs, always_dirs),
        known=held if append else Held(),
        id_kind=options.id,
        absent_mask=absent_mask,
        out=out,
    )
    _tell(skipped_lines(sources))
    # Last of all, so that no salt is made for what is refused; a begun build keeps the one that it began with.
    begun = finished or (out / BUILD_STATE / PLAN).exists()
    salt = _salt(out, patient_salt_file, create=patient_salt_file is None and not begun)
    if options.pseudonymise:
        sources, names = sources.pseudonymise(salt)
        save_pseudonyms(_default(out, ".ids.csv"), names)
    with console.progress(len(sources.train) + len(sources.test), "film", "build") as bar:
        made = build(sources, out, options, salt, workers, max_rejects, on_film=bar.update, task=share, append=append)
    if made is None:
        print(f"{out}: task {task} is built; when all are, run: python -m shards finalize {out}")
    else:
        print(*summary_lines(out, made), sep="\n")


@app.command("finalize")
@click.argument("out", type=FOLDER)
@split_options
@MAX_REJECTS
@SALT
@click.pass_context
def finalize_command(
    context: click.Context, /, out: Path, max_rejects: int, patient_salt_file: Path | None, **arguments: Any
) -> None:
    """Join the tasks of a build into a dataset, or give a finished one other folds; no shard is touched.

    Split options that are not given stay as they were.
    """
    given = {
        name: value
        for name, value in arguments.items()
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    # Without --groups the salt only tells which patient ids name nobody.
    needed = given.get("groups_csv") or patient_salt_file
    salt = _salt(out, patient_salt_file, create=False) if needed else _salt_if_readable(_default(out, ".salt"))
    print(*summary_lines(out, finalize(out, given, salt, max_rejects)), sep="\n")


@app.command("show")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="PNG to write.")
@click.option("--count", type=click.IntRange(min=1), default=24, show_default=True, help="Films to show.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which films.")
@click.option("--positives", is_flag=True, help="Only films with a mask.")
def show_command(folder: Path, out: Path, count: int, seed: int, positives: bool) -> None:
    """Write a contact sheet of films with their masks outlined."""
    from shards.dataset.show import choose, contact_sheet
    from shards.drawing import encode_image

    shards = Shards(folder)
    films = choose(shards, count, seed, positives)
    for film in films:
        for text in shards.warnings(film):
            print(f"warning: {shards.column('image_id')[film]}: {text}", file=sys.stderr)
    atomic_write(out, encode_image(contact_sheet(shards, films)))
    print(f"contact sheet: {out}")


@app.command("export")
@click.argument("folder", type=FOLDER)
@click.option("--png", type=FOLDER, help="Folder for images/, masks/ and films.csv.")
@click.option("--nnunet", type=FOLDER, help="Folder for a raw dataset of nnU-Net v2, with the same folds.")
def export_command(folder: Path, png: Path | None, nnunet: Path | None) -> None:
    """Write the films, masks and folds for other tools."""
    from shards.dataset.export import export_nnunet, export_png

    if (png is None) == (nnunet is None):
        raise InputError("give one of --png DIR and --nnunet DIR")
    shards = Shards(folder)
    with console.progress(len(shards), "film", "export") as bar:
        if png is not None:
            export_png(shards, png, on_film=lambda: bar.update(1))
        elif nnunet is not None:
            export_nnunet(shards, nnunet, on_film=lambda: bar.update(1))
    print(f"exported: {png or nnunet}")


def _held(out: Path) -> frozenset[str]:
    return frozenset(Shards(out).column("image_id"))


def _salt(out: Path, given: Path | None, create: bool) -> bytes:
    path = given or _default(out, ".salt")
    if out.resolve() in path.resolve().parents:
        raise InputError(f"{path}: the patient salt must not lie in the dataset that it protects; move it out of {out}")
    return load_salt(path, create=create)


def _salt_if_readable(path: Path) -> bytes:
    try:
        return load_salt(path, create=False)
    except (InputError, OSError):
        return b""


def _tell(lines: Iterable[tuple[str, bool]]) -> None:
    for line, is_error in lines:
        print(line, file=sys.stderr if is_error else sys.stdout)


def _task(text: str) -> Task:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise InputError(f"--task {text}: write I/N, as in 1/8")
    return Task(int(number), int(count))


def _default(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


@app.command("verify")
@click.argument("folder", type=FOLDER)
def verify_command(folder: Path) -> int:
    """Check every byte of the shards in FOLDER against its table and manifest."""
    faults = verify(folder)
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    if faults:
        print(
            f"error: {folder}: {len(faults)} faults; restore the files named from a copy or build again",
            file=sys.stderr,
        )
        return console.EXIT_USAGE
    print(f"{folder}: good")
    return console.EXIT_DONE


if __name__ == "__main__":
    sys.exit(console.run(app, "python -m shards"))
