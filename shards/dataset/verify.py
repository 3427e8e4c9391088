"""Does a built dataset hold what its table and manifest say, and does no group leak across folds?"""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from shards.dataset import rle
from shards.dataset.grid import mask_to_size, mask_to_square
from shards.dataset.keys import LONGEST_KEY
from shards.dataset.table import TABLE, Shards
from shards.dataset.tar import index_tar
from shards.errors import InputError
from shards.files import sha256_file

Mask = npt.NDArray[np.uint8]


def verify(folder: Path, on_sample: Callable[[], None] | None = None) -> list[str]:
    """Return one line per fault found, an empty list for a good dataset.

    Checks shard digests and sizes, the table's digest, every member's CRC32 and content, masks against their RLE
    areas, keys, counts, and that no group stands in two folds or in a fold and the holdout.
    """
    shards = Shards(folder)
    return [*_files(shards), *_leaks(shards), *_samples(shards, on_sample)]


def _files(shards: Shards) -> Iterator[str]:
    folder, manifest = shards.folder, shards.manifest
    if sha256_file(folder / TABLE) != manifest["table_sha256"]:
        yield f"{folder / TABLE}: differs from the manifest's digest"
    names = shards.column("shard")
    for shard in manifest["shards"]:
        path = folder / shard["name"]
        if not path.exists():
            yield f"{path}: missing"
        elif path.stat().st_size != shard["bytes"] or sha256_file(path) != shard["sha256"]:
            yield f"{path}: differs from the manifest's size or digest"
        index = path.with_suffix(".idx")
        if not index.exists():
            yield f"{index}: missing"
        elif path.exists() and index.read_text(errors="replace") != _index_text(path):
            yield f"{index}: does not describe its tar"
        if int((names == shard["name"]).sum()) != shard["samples"]:
            yield f"{path}: the table lists another number of samples than the manifest"
    listed = {shard["name"] for shard in manifest["shards"]}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            yield f"{path}: is not in the manifest"
    for split in ("train", "holdout", "test"):
        found = len(shards.indices(split))
        if found != manifest["counts"][split]:
            yield f"{folder / TABLE}: {found} {split} samples, the manifest counts {manifest['counts'][split]}"


def _index_text(path: Path) -> str | None:
    try:
        return index_tar(path)[1]
    except (tarfile.TarError, OSError, ValueError):
        return None


def _leaks(shards: Shards) -> Iterator[str]:
    keys, groups, folds = (shards.column(name) for name in ("key", "group", "fold"))
    if len(set(keys)) != len(keys):
        yield f"{shards.folder / TABLE}: a key stands twice"
    for key in keys:
        if not re.fullmatch(rf"[A-Za-z0-9_-]{{1,{LONGEST_KEY}}}", key):
            yield f"{shards.folder / TABLE}: {key!r} is no safe key (letters, digits, _ and - only)"
    seen: dict[str, int] = {}
    for index in shards.indices("train", "holdout"):
        if seen.setdefault(groups[index], folds[index]) != folds[index]:
            yield f"{shards.folder / TABLE}: group {groups[index]} stands in two folds (sample {keys[index]})"


def _samples(shards: Shards, on_sample: Callable[[], None] | None) -> Iterator[str]:
    size, splits, areas = (shards.column(name) for name in ("image_height", "split", "mask_area"))
    for index in range(len(shards)):
        key = str(shards.column("key")[index])
        try:
            image = _decode(shards.read(index, "image"))
            facts = json.loads(shards.read(index, "json"))
            mask = _decode(shards.read(index, "mask")) if splits[index] != "test" else None
        except InputError as error:
            yield str(error)
            continue
        finally:
            if on_sample:
                on_sample()
        if image is None or image.shape != (size[index], shards.column("image_width")[index]):
            yield f"{key}: the image is not {size[index]} pixels high as the table says"
        if facts.get("key") != key:
            yield f"{key}: its json member belongs to {facts.get('key')}"
        if splits[index] == "test":
            continue
        grid = shards.grid(index)
        truth = rle.decode(shards.column("rle")[index], grid.height, grid.width)
        if int(truth.sum()) != areas[index]:
            yield f"{key}: mask area and RLE disagree"
        if mask is None or not set(np.unique(mask).tolist()) <= {0, 255}:
            yield f"{key}: the mask is not binary"
        elif not np.array_equal(mask, _stored_mask(shards, truth, index)):
            yield f"{key}: the mask is not that of its RLE"


def _stored_mask(shards: Shards, truth: Mask, index: int) -> Mask:
    height, width = (int(shards.column(name)[index]) for name in ("image_height", "image_width"))
    if shards.manifest["codec"] == "jpeg":
        return mask_to_size(truth, height, width)
    return mask_to_square(truth, height, shards.grid(index).padding)


def _decode(content: bytes) -> Mask | None:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    return None if image is None else np.asarray(image, np.uint8)


def dataset_digest(shards: Shards) -> str:
    """Return a digest of what training depends on: the table and every shard's content."""
    parts = [shards.manifest["table_sha256"], *(shard["sha256"] for shard in shards.manifest["shards"])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
