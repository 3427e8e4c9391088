"""Joining tasks, splitting again, and finishing what was killed."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from edited_dataset import write_rows
from shard_builds import build_line, good, part_of, tars, write_salt

from shards.build import assemble as finish_module
from shards.dataset.manifest import write_manifest
from shards.dataset.table import TABLE, Shards
from shards.dataset.verify import verify
from shards.errors import InputError

Cli = Callable[..., Any]


def test_three_tasks_and_finalize_give_the_bytes_of_one_build(
    cli: Cli, films: Path, tmp_path: Path, tree_of: Any
) -> None:
    good(cli(*build_line(films, tmp_path / "one/out")))
    salt = tmp_path / "one/out.salt"
    share = ("--patient-salt-file", salt)
    for task in ("2/3", "1/3"):
        good(cli(*build_line(films, tmp_path / "many/out", "--task", task, *share)))
    line = cli("finalize", tmp_path / "many/out").only_line()
    assert "train-00002" in line, "the shard of the task that has not run is named"
    assert not (tmp_path / "many/out/manifest.json").exists()
    good(cli(*build_line(films, tmp_path / "many/out", "--task", "3/3", *share)))
    good(cli("finalize", tmp_path / "many/out"))
    assert tree_of(tmp_path / "many/out") == tree_of(tmp_path / "one/out")


@pytest.mark.parametrize("moment", ["before the table", "before the manifest beside it", "before the manifest"])
def test_a_killed_append_is_finished_by_the_same_command(
    cli: Cli, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_of: Any, moment: str
) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    for name in ("whole", "killed"):
        good(cli(*build_line(first, tmp_path / name / "out", "--patient-salt-file", write_salt(tmp_path))))
    line = ["--append", "--patient-salt-file", tmp_path / "salt"]
    good(cli(*build_line(films, tmp_path / "whole/out", *line)))

    write = write_manifest

    def killed(folder: Path, *arguments: Any, **more: Any) -> Any:
        if moment == "before the manifest" and folder != tmp_path / "killed/out":
            return write(folder, *arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "split_table" if moment == "before the table" else "write_manifest", killed)
        assert cli(*build_line(films, tmp_path / "killed/out", *line)).code == 130
    if moment == "before the manifest":
        with pytest.raises(InputError, match="digest; run the interrupted build or finalize again"):
            Shards(tmp_path / "killed/out")
    else:
        assert len(Shards(tmp_path / "killed/out")) == 20
    good(cli(*build_line(films, tmp_path / "killed/out", *line)))
    assert tree_of(tmp_path / "killed/out") == tree_of(tmp_path / "whole/out")


def test_an_append_that_failed_on_its_rejects_lists_each_once(cli: Cli, films: Path, tmp_path: Path) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    good(cli(*build_line(first, tmp_path / "out")))
    (first / "dicom-images/broken.dcm").write_bytes(b"no film")
    with (first / "train-rle.csv").open("a") as stream:
        stream.write("broken, -1\n")
    for _ in range(2):
        assert "1 film rejected" in cli(*build_line(first, tmp_path / "out", "--append")).only_line()
    good(cli(*build_line(first, tmp_path / "out", "--append", "--max-rejects", 1)))
    assert [row[0] for row in csv.reader((tmp_path / "out/rejected.csv").open())] == ["image_id", "broken"]


def test_a_new_split_touches_no_tar(cli: Cli, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out)))
    before, folds = tars(out), Shards(out).column("fold").copy()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    good(cli("finalize", out, "--folds", 3, "--seed", 5, "--holdout", 0.2))
    after = Shards(out)
    assert set(after.column("fold")) == {-1, 0, 1, 2}
    assert not (after.column("fold") == folds).all()
    assert tars(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == stamps
    assert verify(out) == []


def test_finalize_signs_no_table_whose_digest_does_not_hold(cli: Cli, own_dataset: Path, tree_of: Any) -> None:
    rows = pq.read_table(own_dataset / TABLE).to_pylist()
    rows[0]["sex"] = "O"
    write_rows(own_dataset / TABLE, rows)
    before = tree_of(own_dataset)
    line = cli("finalize", own_dataset, "--folds", 2).only_line()
    assert "samples.parquet: differs from the manifest's digest" in line
    assert {name: content for name, content in tree_of(own_dataset).items() if ".build" not in str(name)} == before


@pytest.mark.parametrize("moment", ["before the manifest beside it", "before the manifest"])
def test_a_killed_finalize_is_finished_by_the_same_command(
    cli: Cli, own_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_of: Any, moment: str
) -> None:
    whole = Path(shutil.copytree(own_dataset, tmp_path / "whole"))
    good(cli("finalize", whole, "--folds", 2))
    write = write_manifest

    def killed(folder: Path, *arguments: Any) -> Any:
        if moment == "before the manifest" and folder != own_dataset:
            return write(folder, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "write_manifest", killed)
        assert cli("finalize", own_dataset, "--folds", 2).code == 130
    good(cli("finalize", own_dataset, "--folds", 2))
    assert tree_of(own_dataset) == tree_of(whole)
