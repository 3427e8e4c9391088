"""Verifies that a dataset matches its table and manifest, and that no group leaks across folds."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.arrays import Mask
from shards.dataset.check import LABELLED_SPLITS, SPLITS
from shards.dataset.grid import mask_to_size, mask_to_square
from shards.dataset.manifest import COUNT_OF, read_manifest
from shards.dataset.table import TABLE, Shards
from shards.dataset.tar import index_tar
from shards.errors import InputError
from shards.files import sha256_file
from shards.stored import read_limited


def verify(folder: Path, on_sample: Callable[[], None] | None = None) -> list[str]:
    """Return a line for each fault, an empty list for a good dataset.

    Checks digests and sizes of shards, the digest of the table, CRC32 and content of every member, masks against their
    RLE, keys, counts, and that no group is in two folds, or in a fold and the holdout. An unreadable table is a fault,
    in addition to those of the tars. Raises InputError for a damaged manifest.
    """
    manifest = read_manifest(folder)
    faults = [*_files(folder, manifest)]
    try:
        shards = Shards(folder, is_signed=False)
    except InputError as error:
        return [*faults, str(error)]
    return [*faults, *_counts(shards), *_leaks(shards), *_samples(shards, on_sample)]


def _files(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    table = folder / TABLE
    if table.is_file() and sha256_file(table) != manifest["table_sha256"]:
        yield f"{table}: differs from the manifest's digest"
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        if not path.exists():
            yield f"{path}: missing"
        elif path.stat().st_size != shard["bytes"] or sha256_file(path) != shard["sha256"]:
            yield f"{path}: differs from the manifest's size or digest"
        index = path.with_suffix(".idx")
        if not index.exists():
            yield f"{index}: missing"
        elif path.exists() and not _describes(index, path):
            yield f"{index}: does not describe its tar"
    listed = {shard["name"] for shard in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path}: is not in the manifest"


def _counts(shards: Shards) -> Iterator[str]:
    folder, manifest, names = shards.folder, shards.manifest, shards.column("shard")
    for shard in manifest["shards"]:
        if int((names == shard["name"]).sum()) != shard["samples"]:
            yield f"{folder / shard['name']}: the table and the manifest list different numbers of samples"
    for split in SPLITS:
        # Manifests of earlier versions do not count newer splits, and have none of their films.
        count, expected = len(shards.indices(split)), manifest["counts"].get(COUNT_OF.get(split, split), 0)
        if count != expected:
            yield f"{folder / TABLE}: {count} {split} samples, the manifest counts {expected}"


def _describes(index: Path, tar: Path) -> bool:
    try:
        text = index_tar(tar)[1].encode()
        return read_limited(index, len(text), "remove it") == text
    except (tarfile.TarError, OSError, ValueError, InputError):
        return False


def _leaks(shards: Shards) -> Iterator[str]:
    keys, groups, folds = (shards.column(name) for name in ("key", "group", "fold"))
    seen: dict[str, int] = {}
    for index in shards.indices("train", "holdout"):
        if seen.setdefault(groups[index], folds[index]) != folds[index]:
            yield f"{shards.folder / TABLE}: group {groups[index]} is in two folds (sample {keys[index]})"


def _samples(shards: Shards, on_sample: Callable[[], None] | None) -> Iterator[str]:
    size, splits, areas = (shards.column(name) for name in ("image_height", "split", "mask_area"))
    for index in range(len(shards)):
        key = str(shards.column("key")[index])
        try:
            image = _decode(shards.read(index, "image"))
            facts = shards.about(index)
            mask = _decode(shards.read(index, "mask")) if splits[index] in LABELLED_SPLITS else None
            truth = shards.label(index) if mask is not None else None
        except InputError as error:
            yield str(error)
            continue
        finally:
            if on_sample:
                on_sample()
        if image is None or image.shape != (size[index], shards.column("image_width")[index]):
            yield f"{key}: the image is not {size[index]} pixels high as the table says"
        if facts["key"] != key:
            yield f"{key}: its json member belongs to {facts['key']}"
        if splits[index] not in LABELLED_SPLITS:
            continue
        if mask is None or truth is None or not set(np.unique(mask).tolist()) <= {0, 255}:
            yield f"{key}: the mask is not binary"
            continue
        if int(truth.sum()) != areas[index]:
            yield f"{key}: mask area and RLE disagree"
        if not np.array_equal(mask, _stored_mask(shards, truth, index)):
            yield f"{key}: the mask differs from its RLE"


def _stored_mask(shards: Shards, truth: Mask, index: int) -> Mask:
    height, width = (int(shards.column(name)[index]) for name in ("image_height", "image_width"))
    if shards.manifest["codec"] == "jpeg":
        return mask_to_size(truth, height, width)
    return mask_to_square(truth, height, shards.grid(index).padding)


def _decode(content: bytes) -> Mask | None:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    return None if image is None else np.asarray(image, np.uint8)


def dataset_digest(shards: Shards) -> str:
    """Return a digest of everything that training depends on: the table and the content of every shard."""
    parts = [shards.manifest["table_sha256"], *(shard["sha256"] for shard in shards.manifest["shards"])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
