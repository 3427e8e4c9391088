"""The state of an unfinished build: lock, records and lists."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shard_builds import build_line, good, write_salt

Cli = Callable[..., Any]


def test_a_second_build_into_one_folder_is_refused_while_the_first_runs(cli: Cli, films: Path, tmp_path: Path) -> None:
    from shards.build.progress import locked

    with locked(tmp_path / "out"):
        assert "another build is writing" in cli(*build_line(films, tmp_path / "out")).only_line()


@pytest.mark.parametrize(
    "content", [b"image_id,file,reason\nf\xff,a,b\n", b"image_id,file,reason\na,b\n", b"a\nb,c,\x00\xff"]
)
@pytest.mark.parametrize("name", ["rejected.csv", "unlabelled.csv"])
def test_a_damaged_list_is_refused_in_one_line(cli: Cli, own_dataset: Path, name: str, content: bytes) -> None:
    (own_dataset / name).write_bytes(content)
    assert f"{name}: not a list that a build wrote" in cli("finalize", own_dataset, "--folds", 2).only_line()


def test_a_lock_that_is_a_link_is_not_written_through(cli: Cli, own_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (own_dataset / ".build").mkdir()
    (own_dataset / ".build/lock").symlink_to(tmp_path / "precious")
    assert "lock: is a symbolic link" in cli("finalize", own_dataset, "--folds", 2).only_line()
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("record", ["train-00000.json", "plan.json"])
def test_a_record_that_was_changed_is_not_built_into_a_table(
    cli: Cli, films: Path, tmp_path: Path, record: str, tree_of: Any
) -> None:
    salt = write_salt(tmp_path)
    lines = {
        name: build_line(films, tmp_path / name / "out", "--patient-salt-file", salt) for name in ("whole", "task")
    }
    good(cli(*lines["whole"]))
    good(cli(*lines["task"], "--task", "1/1"))
    path = tmp_path / "task/out/.build" / record
    content = json.loads(path.read_text())
    if record == "plan.json":
        content["arguments"] = []
    else:
        content["rows"][0]["fold"] = "x"
    path.write_text(json.dumps(content))
    message = "no manifest.json" if record == "plan.json" else "1 shards are not built yet, first train-00000"
    assert message in cli("finalize", tmp_path / "task/out", "--patient-salt-file", salt).only_line()
    good(cli(*lines["task"], "--task", "1/1"))
    good(cli("finalize", tmp_path / "task/out", "--patient-salt-file", salt))
    assert tree_of(tmp_path / "task/out") == tree_of(tmp_path / "whole/out")
