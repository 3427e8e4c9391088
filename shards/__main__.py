"""The command line `pneumo-shards`, or `python -m shards`: makes, checks, draws and exports datasets."""

import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from shards import __version__, console
from shards.build.assemble import finalize, options_of, recover
from shards.build.build import build
from shards.build.films import ABSENT_MASKS, FilmFolders, KnownIds, LabelFiles
from shards.build.messages import skipped_lines, summary_lines
from shards.build.names import ID_KINDS
from shards.build.options import CODECS, BuildOptions, Execution, Task
from shards.build.progress import PLAN, refuse_foreign_folder
from shards.build.sources import find_sources
from shards.dataset.keys import load_salt, save_pseudonyms
from shards.dataset.manifest import BUILD_STATE, MANIFEST
from shards.dataset.table import Shards
from shards.dataset.verify import verify
from shards.errors import InputError
from shards.files import atomic_write, raise_open_files
from shards.film_options import film_options
from shards.split_options import split_options

FOLDER = console.PathType(path_type=Path)
MOST_FAULTS = 20

Inputs = TypeVar("Inputs", FilmFolders, LabelFiles)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pneumo_dist", message="%(prog)s %(version)s")
def app() -> None:
    """Turn chest films and run-length labels into WebDataset shards with a sample table."""
    raise_open_files()


@app.command(short_help="Write synthetic chest films and their labels.")
@click.argument("out", type=FOLDER)
@click.option("--images", type=int, default=240, show_default=True, help="Number of films.")
@click.option("--size", type=int, default=512, show_default=True, help="Height and width of the films, in pixels.")
@click.option("--positive-rate", type=float, default=0.25, show_default=True, help="Share of films with a mask.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the films.")
@click.option("--pictures", is_flag=True, help="Write PNGs: OUT/images, OUT/masks and OUT/patients.csv.")
def synth(out: Path, images: int, size: int, positive_rate: float, seed: int, pictures: bool) -> None:
    """Write synthetic chest films (DICOM) and their label CSV to OUT, in the SIIM layout."""
    from shards.phantom.dataset import synthesize, synthesize_pictures

    with console.progress(images, "film", "synth") as bar:
        options: Any = {"images": images, "size": size, "positive_rate": positive_rate, "seed": seed}
        if pictures:
            made = synthesize_pictures(out, **options, on_film=_one_more(bar))
            print(f"{made.films} films ({made.positives} positive, {made.patients} patients) in {out}")
            return
        summary = synthesize(out, **options, on_film=_one_more(bar))
    print(
        f"{summary.films} films ({summary.positives} positive, {summary.patients} patients) in {summary.dicom_dir}\n"
        f"{summary.rle_rows} label rows in {summary.labels_csv}"
    )


@app.command("build")
@click.option("--dicom", type=FOLDER, multiple=True, help="Folder with DICOM films; may be repeated.")
@click.option("--images", type=FOLDER, multiple=True, help="Folder with PNG or JPEG films; may be repeated.")
@click.option("--rle", "csv", type=FOLDER, help="Label CSV: image id, and run-length mask or -1.")
@click.option("--masks", type=FOLDER, help="Folder with mask PNGs named like the films; replaces --rle.")
@click.option(
    "--absent-mask",
    type=click.Choice(ABSENT_MASKS),
    default=ABSENT_MASKS[0],
    show_default=True,
    help="What a film without a file in --masks is; negative gives it an empty mask.",
)
@click.option("--always-train", type=FOLDER, multiple=True, help="Folder with labelled films that train in every fold.")
@click.option("--test-dicom", type=FOLDER, multiple=True, help="Folder with DICOM test films.")
@click.option("--test-images", type=FOLDER, multiple=True, help="Folder with PNG or JPEG test films.")
@click.option(
    "--unlabelled-dicom", type=FOLDER, multiple=True, help="Folder with DICOM films to learn from without labels."
)
@click.option(
    "--unlabelled-images",
    type=FOLDER,
    multiple=True,
    help="Folder with PNG or JPEG films to learn from without labels.",
)
@click.option(
    "--keep-unlabelled", is_flag=True, help="Films of --dicom and --images without a label become unlabelled ones."
)
@click.option("--out", type=FOLDER, required=True, help="Folder of the dataset.")
@click.option("--image-size", type=int, default=512, show_default=True, help="Side of the stored square, in pixels.")
@click.option(
    "--codec", type=click.Choice(CODECS), default="png", show_default=True, help="jpeg keeps the size of the films."
)
@click.option("--label-size", type=int, help="Side of the labels' grid, if it is not that of the films (PNG exports).")
@click.option("--samples-per-shard", type=int, default=512, show_default=True, help="Maximum number of films in a tar.")
@film_options
@click.option(
    "--id",
    type=click.Choice(ID_KINDS),
    default=BuildOptions.id,
    show_default=True,
    help="Image ids: file names, or SOPInstanceUIDs if files share a name. Labels and masks use the same ids.",
)
@click.option("--pseudonymise", is_flag=True, help="Replace image ids; OUT.ids.csv keeps the map.")
@split_options
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="all cores",
    help="Number of processes.",
)
@click.option("--task", metavar="I/N", help="Build task I of N of an array; 'finalize' joins them.")
@click.option("--append", is_flag=True, help="Add the films that OUT does not hold yet, in new shards.")
def build_command(
    out: Path,
    workers: int,
    task: str | None,
    append: bool,
    max_rejects: int,
    patient_salt_file: Path | None,
    **arguments: Any,
) -> None:
    """Build shards, sample table and manifest from films and labels."""
    folders, labels = _take(FilmFolders, arguments), _take(LabelFiles, arguments)
    options = options_of(arguments)
    execution = Execution(workers, max_rejects, _task(task) if task else None, append)
    refuse_foreign_folder(out)
    recover(out)
    is_finished = (out / MANIFEST).exists()
    # A damaged dataset is refused here, before its films are looked for.
    known = KnownIds(frozenset(Shards(out).column("image_id")) if is_finished else frozenset())
    if append and options.pseudonymise:
        known = replace(known, salt=_salt(out, patient_salt_file, create=False))
    sources = find_sources(folders, labels, known if append else KnownIds(), id_kind=options.id, out=out)
    for line, is_error in skipped_lines(sources):
        print(console.printable(line), file=sys.stderr if is_error else sys.stdout)
    # Only now, so that a refused build makes no salt. An unfinished build keeps the salt that it began with.
    has_begun = is_finished or (out / BUILD_STATE / PLAN).exists()
    salt = _salt(out, patient_salt_file, create=patient_salt_file is None and not has_begun)
    if options.pseudonymise:
        sources, names = sources.pseudonymise(salt)
        save_pseudonyms(_next_to(out, ".ids.csv"), names)
    with console.progress(len(sources.films), "film", "build") as bar:
        summary = build(sources, out, options, salt, execution, on_film=bar.update)
    if summary is None:
        print(f"{out}: task {task} is built; when all are, run: python -m shards finalize {out}")
    else:
        print(*map(console.printable, summary_lines(out, summary)), sep="\n")


@app.command("finalize", short_help="Join the tasks of a build, or split a dataset again.")
@click.argument("out", type=FOLDER)
@split_options
@click.pass_context
def finalize_command(
    context: click.Context, /, out: Path, max_rejects: int, patient_salt_file: Path | None, **arguments: Any
) -> None:
    """Join the tasks of a build into a dataset, or split a finished dataset again. No shard is touched.

    Split options that you leave out keep their values.
    """
    changes = {
        name: value
        for name, value in arguments.items()
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    # Without --groups, the salt only finds patient ids that name nobody.
    is_needed = changes.get("groups_csv") or patient_salt_file
    salt = _salt(out, patient_salt_file, create=False) if is_needed else _salt_if_readable(_next_to(out, ".salt"))
    print(*map(console.printable, summary_lines(out, finalize(out, changes, salt, max_rejects))), sep="\n")


@app.command("show")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, required=True, help="Path of the PNG.")
@click.option("--count", type=click.IntRange(min=1), default=24, show_default=True, help="Number of films.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of films.")
@click.option("--positives", is_flag=True, help="Show only films with a mask.")
def show_command(folder: Path, out: Path, count: int, seed: int, positives: bool) -> None:
    """Write a contact sheet of films with their masks outlined."""
    from shards.dataset.show import choose, contact_sheet
    from shards.drawing import encode_image

    shards = Shards(folder)
    films = choose(shards, count, seed, positives)
    for film in films:
        for text in shards.warnings(film):
            console.warn(f"{shards.column('image_id')[film]}: {text}")
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
            export_png(shards, png, on_film=_one_more(bar))
        elif nnunet is not None:
            export_nnunet(shards, nnunet, on_film=_one_more(bar))
    print(f"exported: {png or nnunet}")


@app.command("verify", short_help="Check every byte of the shards.")
@click.argument("folder", type=FOLDER)
def verify_command(folder: Path) -> int:
    """Check every byte of the shards in FOLDER against its table and manifest."""
    faults = verify(folder)
    if not faults:
        print(f"{folder}: good")
        return console.EXIT_DONE
    for fault in faults[:MOST_FAULTS]:
        print(console.printable(fault), file=sys.stderr)
    print(
        f"error: {folder}: {console.counted(len(faults), 'fault')}; restore the files from a copy or build again",
        file=sys.stderr,
    )
    return console.EXIT_USAGE


def _take(kind: type[Inputs], arguments: dict[str, Any]) -> Inputs:
    """Take the fields of a dataclass out of a command's arguments."""
    return kind(**{field.name: arguments.pop(field.name) for field in fields(kind)})


def _task(text: str) -> Task:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise InputError(f"--task {text}: write I/N, as in 1/8")
    return Task(int(number), int(count))


def _salt(out: Path, file: Path | None, create: bool) -> bytes:
    path = file or _next_to(out, ".salt")
    if out.resolve() in path.resolve().parents:
        raise InputError(f"{path}: the patient salt must not be in the dataset that it protects; move it out of {out}")
    return load_salt(path, create=create)


def _salt_if_readable(path: Path) -> bytes:
    try:
        return load_salt(path, create=False)
    except (InputError, OSError):
        return b""


def _next_to(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _one_more(bar: Any) -> Callable[[], None]:
    return lambda: bar.update(1)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(console.run(app, console.program("pneumo-shards", "shards")))


if __name__ == "__main__":
    main()
