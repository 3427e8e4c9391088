"""The code that runs, as checkpoints and ranks name it."""

import hashlib
from functools import cache
from pathlib import Path

import pneumo_dist
import shards


@cache
def source_digest() -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the source files of both packages, by name."""
    digest = hashlib.sha256()
    for package in (pneumo_dist, shards):
        (folder,) = map(Path, package.__path__)
        for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.j2")]):
            digest.update(f"{folder.name}/{path.relative_to(folder).as_posix()}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
