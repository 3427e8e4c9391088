"""Edits of stored files: with a digest that matches again, only a check of the values finds them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.dataset.manifest import MANIFEST
from shards.dataset.table import SCHEMA, TABLE, save_table
from shards.files import sha256_file


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a sample table."""
    save_table(path, pa.Table.from_pylist(rows, schema=SCHEMA))


def change_manifest(folder: Path, **changes: Any) -> None:
    """Replace values in the manifest of a dataset or of predictions."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def edit_rows(folder: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change rows of the table of a dataset and enter its new digest in the manifest."""
    rows = pq.read_table(folder / TABLE).to_pylist()
    change(rows)
    write_rows(folder / TABLE, rows)
    resign(folder)


def resign(folder: Path, table: str = TABLE, name: str = "table_sha256") -> None:
    """Enter the digest of a changed table in its manifest, as a careless editor would."""
    change_manifest(folder, **{name: sha256_file(folder / table)})
