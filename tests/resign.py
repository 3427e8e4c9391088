"""Stored files changed on purpose: with a digest that holds again, only a look at the values can tell."""

import json
from pathlib import Path

from shards.dataset.manifest import MANIFEST
from shards.dataset.table import TABLE
from shards.files import sha256_file


def resign(folder: Path, table: str = TABLE, name: str = "table_sha256") -> None:
    """Enter the digest of a changed table in its manifest, as a careless editor would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, name: sha256_file(folder / table)}))
