"""Sample tables from rows, for tests that change what a build wrote."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from shards.dataset.table import SCHEMA, save_table


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as a sample table."""
    save_table(path, pa.Table.from_pylist(rows, schema=SCHEMA))
