"""python -m shards: synthesise, build and verify datasets."""

import os
import sys
from pathlib import Path

import click

from shards import console
from shards.build import BuildOptions, build, refuse_foreign_folder
from shards.keys import load_salt
from shards.labels import load_labels
from shards.sources import find_sources
from shards.verify import verify

FOLDER = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def app() -> None:
    """Turn chest films and run-length labels into WebDataset shards with a sample table."""


@app.command()
@click.argument("out", type=FOLDER)
@click.option("--images", type=int, default=240, show_default=True, help="Number of films.")
@click.option("--size", type=int, default=512, show_default=True, help="Rows and columns of a film, in pixels.")
@click.option("--positive-rate", type=float, default=0.25, show_default=True, help="Share of films with a mask.")
@click.option("--seed", type=int, default=0, show_default=True)
def synth(out: Path, images: int, size: int, positive_rate: float, seed: int) -> None:
    """Write synthetic chest films (DICOM) and their label CSV to OUT, in the SIIM layout."""
    from shards.phantom import synthesize

    with console.progress(images, "film", "synth") as bar:
        made = synthesize(
            out, images=images, size=size, positive_rate=positive_rate, seed=seed, on_film=lambda: bar.update(1)
        )
    print(f"{made.films} films ({made.positives} positive, {made.patients} patients) in {made.dicom_dir}")
    print(f"{made.rle_rows} label rows in {made.labels_csv}")


@app.command("build")
@click.option("--dicom", "dicom_dirs", type=FOLDER, multiple=True, help="Folder of DICOM films; may be repeated.")
@click.option("--images", "image_dirs", type=FOLDER, multiple=True, help="Folder of PNG/JPEG films; may be repeated.")
@click.option("--rle", "labels_path", type=FOLDER, help="Label CSV: image id, run-length mask or -1.")
@click.option("--masks", type=FOLDER, help="Folder of mask PNGs with the films' names, instead of --rle.")
@click.option("--test-dicom", "test_dicom_dirs", type=FOLDER, multiple=True, help="Unlabelled DICOM films.")
@click.option("--test-images", "test_image_dirs", type=FOLDER, multiple=True, help="Unlabelled PNG/JPEG films.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the shards.")
@click.option("--image-size", type=int, default=512, show_default=True, help="Side of the stored square, in pixels.")
@click.option("--label-size", type=int, help="Side of the labels' grid where it is not the film's own (PNG exports).")
@click.option("--folds", type=int, default=5, show_default=True)
@click.option(
    "--holdout", type=float, default=0.0, show_default=True, help="Share never trained, selected or tuned on."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the folds.")
@click.option("--samples-per-shard", type=int, default=512, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default="all cores")
@click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Rejected films that are put up with.",
)
@click.option("--patient-salt-file", type=FOLDER, help="Secret that keys patient hashes.  [default: OUT.salt, made]")
def build_command(
    dicom_dirs: tuple[Path, ...],
    image_dirs: tuple[Path, ...],
    labels_path: Path | None,
    masks: Path | None,
    test_dicom_dirs: tuple[Path, ...],
    test_image_dirs: tuple[Path, ...],
    out: Path,
    image_size: int,
    label_size: int | None,
    folds: int,
    holdout: float,
    seed: int,
    samples_per_shard: int,
    workers: int,
    max_rejects: int,
    patient_salt_file: Path | None,
) -> None:
    """Build shards, sample table and manifest from films and labels."""
    options = BuildOptions(image_size, folds, holdout, seed, samples_per_shard, label_size)
    labels = load_labels(labels_path) if labels_path else None
    sources = find_sources(dicom_dirs, image_dirs, masks, labels, labels_path, test_dicom_dirs, test_image_dirs)
    refuse_foreign_folder(out)  # before a salt is made for it
    default_salt = out.with_name(out.name + ".salt")
    salt = load_salt(patient_salt_file or default_salt, create=patient_salt_file is None)
    with console.progress(len(sources.train) + len(sources.test), "film", "build") as bar:
        made = build(sources, out, options, salt, workers, max_rejects, on_film=bar.update)
    print(
        f"{out}: {made.train} training films and {made.holdout} held out ({made.positives} positive, "
        f"{made.patients} patients), {made.test} test films, {made.shards} shards ({made.reused_shards} reused)"
    )
    if sources.train and made.patients == made.train + made.holdout:
        print("every film has a patient of its own: grouping had no effect")
    print(f"{made.unlabelled} films without a label, listed in {out / 'unlabelled.csv'}, are left out")
    print(f"{made.rejected} films rejected, listed in {out / 'rejected.csv'}")


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
