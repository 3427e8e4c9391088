"""Checkpoint files: the step and a digest are in the name, the digest is verified before use, nothing is unpickled."""

import hashlib
import os
import pickletools
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch.serialization import skip_data

from pneumo_dist.runs.state import FIX, check_header, check_state
from shards.errors import InputError
from shards.stored import open_regular, stored_plainly

# Checkpoints written before 0.2.0 have no version. They count as version 1.
FORMAT_VERSION = 1
DIGEST_LENGTH = 16
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")

# What a state of tensors and plain types names. torch allows more, such as a bytearray of any size.
_NAMES = re.compile(r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage")
# The description of a state, without its tensors. An opcode of one byte may make an object of 64.
_MOST_DESCRIPTION = 16 << 20

State = dict[str, Any]


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file, described by its name."""

    path: Path
    step: int
    digest: str

    @classmethod
    def named(cls, step: int, sha256: str, folder: Path) -> "CheckpointFile":
        """Return the file of `step` optimizer steps whose content has this SHA-256, in hexadecimal."""
        digest = sha256[:DIGEST_LENGTH]
        return cls(folder / f"step-{step:08d}-{digest}.pt", step, digest)

    @classmethod
    def parse(cls, path: Path) -> "CheckpointFile | None":
        """Return the file that a path names; None for the name of anything else."""
        match = _NAME.fullmatch(path.name)
        return cls(path, int(match[1]), match[2]) if match else None

    def is_whole(self) -> bool:
        """Return whether the content matches the digest in the name."""
        with open_regular(self.path) as stream:
            return _digest(stream).startswith(self.digest)

    def damaged(self) -> InputError:
        """Return the error to raise if the file is not whole."""
        return InputError(f"{self.path}: damaged (its content does not match its digest); restore it or train again")


def load_checkpoint(path: Path) -> State:
    """Verify a checkpoint and load it onto the CPU.

    Raises:
        InputError: The file is missing, damaged, not a checkpoint, or holds values that training never writes.
    """
    try:
        resolved = path.resolve(strict=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train that fold first") from None
    file = CheckpointFile.parse(resolved)
    with open_regular(resolved) as stream:
        if file is not None and not _digest(stream).startswith(file.digest):
            raise file.damaged()
        return _load(stream, resolved)


def map_checkpoint(path: Path) -> State:
    """Map a checkpoint's tensors from its file, without verifying its digest, to copy them to where they are used.

    The ranks of a machine share the memory. The state must not outlive the file, which training removes later. Raises
    InputError like `load_checkpoint`.
    """
    with open_regular(path) as stream:
        return _load(stream, path, mapped=True)


def read_header(path: Path) -> State:
    """Read everything in a checkpoint except the values of its tensors, which stay uninitialized.

    The history and the position of a run cost a few kilobytes this way, not the weights and the optimizer. Raises
    InputError like `load_checkpoint`.
    """
    with open_regular(path) as stream:
        return _load(stream, path, with_tensors=False)


def from_training(state: State, path: Path) -> State:
    """Return a state that training wrote. Raises InputError for averaged weights, which cannot be trained on."""
    if "position" not in state:
        raise InputError(f"{path}: holds averaged weights, which training cannot resume from; {FIX}")
    return state


def weights_of(state: State) -> State:
    """Return the weights that a checkpoint validates and predicts with: the averaged ones if it has any."""
    weights: State = state["averaged"] or state["model"]
    return weights


def top_steps(history: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Return the steps with the best scores, best first. The earlier of two equal scores wins."""
    ranked = sorted(history, key=lambda epoch: (-epoch["score"], epoch["step"]))
    return [int(epoch["step"]) for epoch in ranked[:count]]


def _load(stream: BufferedReader, path: Path, with_tensors: bool = True, mapped: bool = False) -> State:
    stream.seek(0)
    try:
        with zipfile.ZipFile(stream) as archive:
            if not stored_plainly(archive, os.fstat(stream.fileno()).st_size):
                raise InputError(f"{path}: its members are compressed, which no checkpoint's are; restore it")
            _check_names(archive, path)
        stream.seek(0)
        # torch maps files by their name only. This name is that of the open file, which `path` may no longer be.
        source = f"/proc/self/fd/{stream.fileno()}" if mapped else stream
        with nullcontext() if with_tensors else skip_data():
            state = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except Exception as error:  # the zip reader and the restricted unpickler raise many kinds
        raise InputError(f"{path}: not a readable checkpoint ({type(error).__name__}); {FIX}") from None
    if not isinstance(state, dict) or "model" not in state:
        raise InputError(f"{path}: holds no model; {FIX}")
    version = state.get("format_version", 1)
    if version != FORMAT_VERSION:
        writer = state.get("version", "version not noted")
        raise InputError(
            f"{path}: a checkpoint of format version {version}, this program reads version {FORMAT_VERSION}; "
            f"use the pneumo_dist that wrote it ({writer}), or train again"
        )
    if with_tensors:
        check_state(state, path)
    else:
        check_header(state, path)
    return state


def _check_names(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise InputError for a state that names anything but tensors and plain types. Nothing is unpickled."""
    for member in archive.infolist():
        if not member.filename.casefold().endswith(".pkl"):  # torch's reader ignores case
            continue
        if member.file_size > _MOST_DESCRIPTION:
            raise InputError(f"{path}: describes more than a checkpoint holds; {FIX}")
        for opcode, name, _ in pickletools.genops(archive.read(member)):
            if opcode.name == "STACK_GLOBAL" or (opcode.name == "GLOBAL" and not _NAMES.fullmatch(str(name))):
                what = f"holds {str(name)[:60]!r}, not a plain array or value"
                raise InputError(f"{path}: not a readable checkpoint ({what}); {FIX}")


def _digest(stream: BufferedReader) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()
