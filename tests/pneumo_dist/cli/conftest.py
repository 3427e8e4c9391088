"""A config and a dataset that tests of train and of dry runs share."""

import shutil
from pathlib import Path

import pytest
from edited_dataset import resign, write_rows
from tiny_runs import PLAIN

from shards.dataset.table import TABLE, Shards, read_table


@pytest.fixture
def one_sided(films: Shards, tmp_path: Path) -> Path:
    """Films whose positives are all in fold 0."""
    folder = Path(shutil.copytree(films.folder, tmp_path / "shards"))
    rows = read_table(folder).to_pylist()
    negatives = [row["key"] for row in rows if not row["has_mask"]]
    write_rows(folder / TABLE, [{**row, "fold": int(row["key"] in negatives[3:])} for row in rows])
    resign(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN.model_dump_json())
    return path
