"""Writes a bundle as an ONNX file, and compares the file with the networks before it gets its name."""

import hashlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from pneumo_dist import __version__
from pneumo_dist.predict.bundle import read_bundle, read_card
from pneumo_dist.predict.onnx_graph import FILM, EnsembleGraph, metadata
from pneumo_dist.scoring.arrays import Map
from shards.errors import InputError
from shards.files import atomic_named_later, atomic_write

if TYPE_CHECKING:
    import onnx_ir

# A protocol buffer holds less than 2 GiB. The graph itself takes some of it.
MOST_INLINE = 2_000_000_000
# The largest difference between two runtimes, in levels of 1/255.
MOST_LEVELS = 1.0
# Runtimes read the shapes that a graph computes before they read a second file, so small tensors are never in it.
_LEAST_EXTERNAL = 1024
# Each tensor starts at a multiple of it, so that a runtime can map the file into memory.
_PAGE = 4096
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_bundle(bundle: Path, path: Path, most_inline: int = MOST_INLINE) -> tuple[list[Path], float]:
    """Write a bundle as one ONNX graph that onnxruntime runs without this package.

    Before the file gets its name, onnxruntime predicts a film with the graph, and torch predicts it with the networks.

    Args:
        bundle: A file written by `write_bundle`.
        path: The ONNX file.
        most_inline: Largest number of bytes of weights in the ONNX file itself. More go into a second file next to it,
            which the graph names. Its name contains a digest of its content.

    Returns:
        The written files, and the largest difference of a pixel in the comparison, in levels of 1/255.

    Raises:
        InputError: The bundle is damaged, a package is missing, the networks give values that are not finite, or the
            graph predicts something else. Nothing is written.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx {path}: {' and '.join(missing)} missing; run: pip install 'pneumo_dist[onnx]'")
    import onnx_ir

    from pneumo_dist.predict.onnx_trace import onnx_model

    ensemble, rule = read_bundle(bundle)
    distinct = {network.name: network for network in ensemble.networks}
    built = {name: network.read().build(name).float() for name, network in distinct.items()}
    networks = [built[network.name] for network in ensemble.networks]
    graph = EnsembleGraph(ensemble, networks).eval()
    film = _test_film(ensemble.film_size)
    with torch.inference_mode():
        expected = [output.numpy() for output in graph(torch.from_numpy(film))]
    if not all(np.isfinite(output).all() for output in expected):
        raise InputError(f"{bundle}: gives values that are not finite numbers; its weights are damaged")
    model = onnx_model(ensemble, networks)
    model.metadata_props.update(metadata(ensemble, rule, read_card(bundle)))
    model.producer_name, model.producer_version = "pneumo_dist", __version__
    weights = [value for value in model.graph.initializers.values() if _nbytes(value) >= _LEAST_EXTERNAL]
    earlier = _data_files(path)
    data = None
    if sum(map(_nbytes, weights)) > most_inline:
        data = _write_data(weights, path)
    content = onnx_ir.to_proto(model).SerializeToString()
    try:
        levels = 255 * _difference(expected, _run(content, path.parent, film))
        if not levels <= MOST_LEVELS:
            raise InputError(
                f"{bundle}: onnxruntime gives other maps than torch (by {levels:.3g} of 255 levels); use "
                "the versions of constraints.txt"
            )
        atomic_write(path, content)
    except BaseException:
        if data is not None and data not in earlier:
            data.unlink()
        raise
    for stale in earlier:
        if stale != data:
            stale.unlink(missing_ok=True)
    return [path, *([data] if data else [])], levels


def _test_film(side: int) -> Map:
    """Return a film of grey clouds and noise, uint8 (1, side, side)."""
    draws = np.random.default_rng(0)
    clouds = cv2.resize(draws.uniform(0, 220, (9, 9)), (side, side), interpolation=cv2.INTER_LINEAR)
    return np.clip(clouds + draws.normal(0, 8, (side, side)), 0, 255).astype(np.uint8)[None]


def _run(content: bytes, folder: Path, film: Map) -> list[Map]:
    """Run a graph whose second file, if any, is in `folder`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    outputs: list[Map] = session.run(None, {FILM: film})
    return outputs


def _difference(expected: Sequence[Map], found: Sequence[Map]) -> float:
    """Return the largest difference between two lists of outputs; nan if a value is not a number."""
    return float(np.max([np.abs(mine - other).max() for mine, other in zip(expected, found, strict=True)]))


def _nbytes(value: "onnx_ir.Value") -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _data_files(path: Path) -> list[Path]:
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return [each for each in path.parent.glob("*.data") if name.fullmatch(each.name)]


def _write_data(weights: Sequence["onnx_ir.Value"], path: Path) -> Path:
    """Write weights to a file next to `path`, and make the graph name their places in it."""
    import onnx_ir

    places: list[tuple[int, int]] = []
    digest, end = hashlib.sha256(), 0
    with atomic_named_later(path.parent, path.name) as file:
        for value in weights:
            assert value.const_value is not None
            content = value.const_value.tobytes()
            for part in (b"\0" * (-end % _PAGE), content):
                file.stream.write(part)
                digest.update(part)
                end += len(part)
            places.append((end - len(content), len(content)))
        file.name = f"{path.name}.{digest.hexdigest()[:16]}.data"
    for value, (offset, length) in zip(weights, places, strict=True):
        tensor = value.const_value
        assert tensor is not None and value.name is not None
        shape = onnx_ir.Shape(tensor.shape.numpy())
        value.const_value = onnx_ir.ExternalTensor(
            file.name, offset, length, tensor.dtype, shape=shape, name=value.name, base_dir=path.parent
        )
    return path.parent / file.name
