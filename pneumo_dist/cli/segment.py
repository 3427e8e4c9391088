"""The command segment, which finds pneumothorax on new films. Heavy modules are imported when it runs."""

import json
import os
import sys
from datetime import date
from pathlib import Path
from typing import Any

import click

from pneumo_dist.cli.options import CPU, FOLDER, check_folder
from pneumo_dist.output.formats import DEFAULT_FORMATS, FORMATS
from pneumo_dist.ranks.environment import launched_rank
from shards import console
from shards.dicom.rules import FilmRules
from shards.errors import InputError
from shards.film_options import film_options


def _formats(context: click.Context, param: click.Parameter, value: str | None) -> frozenset[str] | None:
    """Return the formats of a list with commas, None without one."""
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in FORMATS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(FORMATS)}", context, param)
    return frozenset(names)


@click.command(short_help="Segment new DICOM, PNG or JPEG films.")
@click.argument("films", nargs=-1, required=True, type=FOLDER)
@click.option("--bundle", type=FOLDER, required=True, help="Bundle written by 'average --bundle'.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the masks, overlays and DICOM objects.")
@click.option(
    "--format",
    "formats",
    callback=_formats,
    metavar="FORMAT,...",
    help="What to write besides the findings, with commas: mask (PNG), rle (text), seg (DICOM Segmentation object of a "
    "DICOM film), overlay (PNG).  [default: mask,seg,overlay]",
)
@click.option("--keep-folders", is_flag=True, help="Write the results of a folder's films into the same subfolders.")
@film_options
@CPU
def segment(
    films: tuple[Path, ...],
    bundle: Path,
    out: Path,
    formats: frozenset[str] | None,
    keep_folders: bool,
    strict: bool,
    cpu: bool,
    **rules: Any,
) -> int:
    """Segment new DICOM, PNG or JPEG films, or folders of them, and print a line of JSON per film.

    For research, not for diagnosis.
    """
    if launched_rank(os.environ) is not None:
        raise InputError("segment runs as one process; for many films on several ranks use predict --bundle --dicom")
    from pneumo_dist import __version__
    from pneumo_dist.output.dicom_seg import Algorithm
    from pneumo_dist.output.segment import Outputs, check_formats, write_results
    from pneumo_dist.output.segmenter import Segmenter
    from pneumo_dist.predict.new_films import RefusedFilm, check_distinct, find_films
    from shards.temporaries import scratch_folder

    found = find_films(films, keep_folders=keep_folders, leave_out=[out])
    check_distinct(found, keep_folders)
    check_formats([film.path for film in found], formats or frozenset())
    check_folder(out)
    segmenter = Segmenter.load(bundle, cpu, FilmRules(**rules))
    algorithm = Algorithm(segmenter.ensemble.name, __version__)
    outputs = Outputs(out, algorithm, date.today(), formats or DEFAULT_FORMATS)
    is_complete = True
    # The decoded films never leave the disk that the user chose. A mounted OUT may be all that is writable.
    parent = out if out.exists() and not os.access(out.parent, os.W_OK) else out.parent
    with (
        scratch_folder(parent, f"{out.name}.films") as scratch,
        console.progress(len(found), "film", "read") as read,
        console.progress(len(found), "film", "predict") as predicted,
        console.progress(len(found), "film", "write") as written,
    ):
        for result in segmenter.files(found, scratch, strict, read.update, predicted.update):
            written.update()
            try:
                if isinstance(result, RefusedFilm):
                    raise InputError(f"{result.path}: refused, {result.reason}")
                findings = write_results(result, outputs)
            except InputError as error:  # the other films are still segmented
                console.beside_bars(f"error: {console.printable(str(error))}", sys.stderr)
                is_complete = False
            else:
                for text in findings["warnings"]:
                    console.beside_bars(f"warning: {console.printable(f'{result.source.path}: {text}')}", sys.stderr)
                console.beside_bars(json.dumps(findings), sys.stdout)
    return console.EXIT_DONE if is_complete else console.EXIT_USAGE
