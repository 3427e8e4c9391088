"""The command export, which writes networks in formats of other programs."""

import os
from pathlib import Path

import click

from pneumo_dist.cli.options import FOLDER
from pneumo_dist.ranks.environment import is_first
from shards.errors import InputError


@click.command(short_help="Write a bundle as one ONNX graph.")
@click.option("--bundle", type=FOLDER, required=True, help="Bundle written by 'average --bundle'.")
@click.option("--onnx", "path", type=FOLDER, required=True, help="ONNX file to write.")
def export(bundle: Path, path: Path) -> None:
    """Write a bundle as one ONNX graph, which onnxruntime runs without this package.

    Weights of more than 2 GB go into a second file next to it.
    """
    if not is_first(os.environ):
        return
    from pneumo_dist.predict.onnx_file import export_bundle

    if path.is_dir():
        raise InputError(f"--onnx {path}: is a folder; give the file to write")
    files, levels = export_bundle(bundle, path)
    print(f"largest difference between onnxruntime and torch: {levels:.2g} of 255 levels (1 film)")
    print(f"ONNX graph: {' with weights in '.join(map(str, files))}")
