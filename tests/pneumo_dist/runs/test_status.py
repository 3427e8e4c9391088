"""The table of runs, read from heartbeats and logs at any moment of a run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pneumo_dist.runs.heartbeat import LOST_SECONDS
from pneumo_dist.runs.status import STALLED_SECONDS, FoldStatus, read_status, table
from shards.errors import InputError

NOW = 1_000_000.0


def fold(runs: Path, name: str, **beat: Any) -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    given = {
        "state": "running",
        "time": NOW - 3,
        "stage": "main",
        "epoch": 4,
        "epochs": 30,
        "step": 130,
        "job_id": "12",
    }
    (folder / "heartbeat.json").write_text(json.dumps({**given, **beat}))
    return folder


def epochs(folder: Path, *scores: float) -> Path:
    lines = [json.dumps({"score": score, "epoch": n, "images_per_s": 40.0 + n}) for n, score in enumerate(scores)]
    path = folder / "main/metrics.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join([*lines, json.dumps({"bad_step_films": []})]) + "\n")
    return path


def test_running_fold_with_its_best_score_and_last_speed(tmp_path: Path) -> None:
    epochs(fold(tmp_path, "seunet/fold3"), 0.5, 0.8, 0.7)
    (found,) = read_status(tmp_path, NOW)
    assert found == FoldStatus("seunet", 3, "running", "main", 5, 30, 130, 0.8, 42.0, 3.0, "12", 3.0)


@pytest.mark.parametrize(
    ("state", "age", "shown"),
    [
        ("running", LOST_SECONDS - 1, "running"),
        ("running", LOST_SECONDS + 1, "failed"),
        ("preempted", 9999, "preempted"),
        ("done", 9999, "done"),
        ("failed", 1, "failed"),
    ],
)
def test_silence_means_failure_only_while_running(tmp_path: Path, state: str, age: float, shown: str) -> None:
    fold(tmp_path, "a/fold0", state=state, time=NOW - age)
    assert read_status(tmp_path, NOW)[0].state == shown


@pytest.mark.parametrize(
    ("state", "idle", "shown", "cell"),
    [
        ("running", STALLED_SECONDS - 5, "running", "running"),
        ("running", 357.0, "stalled", "stalled 6 min"),
        ("done", 9999.0, "done", "done"),
    ],
)
def test_live_run_without_progress_is_stalled(tmp_path: Path, state: str, idle: float, shown: str, cell: str) -> None:
    fold(tmp_path, "a/fold0", state=state, idle=idle)
    found = read_status(tmp_path, NOW)
    assert found[0].state == shown
    assert f"  {cell}  " in table(found)[1]


def test_heartbeat_from_a_clock_ahead_counts_as_now(tmp_path: Path) -> None:
    fold(tmp_path, "a/fold0", time=NOW + 50)
    assert read_status(tmp_path, NOW)[0].heard == 0.0


def test_partly_written_line_is_skipped(tmp_path: Path) -> None:
    log = epochs(fold(tmp_path, "a/fold0"), 0.25)
    with log.open("a") as stream:
        stream.write('{"score": 0.9, "epo')
    assert read_status(tmp_path, NOW)[0].score == 0.25


def test_fold_before_its_first_epoch_and_one_without_a_heartbeat(tmp_path: Path) -> None:
    fold(tmp_path, "b/fold10", stage=None, epoch=None, step=None)
    (tmp_path / "b/fold9").mkdir()
    for other in ("b/oof", "b/foldable", "slurm/logs"):
        (tmp_path / other).mkdir(parents=True)
    assert [(each.fold, each.state, each.score) for each in read_status(tmp_path, NOW)] == [
        (9, "unknown", None),
        (10, "running", None),
    ]
    assert len(table(read_status(tmp_path, NOW))) == 3


@pytest.mark.parametrize(
    ("heard", "shown"),
    [(0.4, "0 s ago"), (119, "119 s ago"), (600, "10 min ago"), (7200, "2 h ago"), (864000, "10 d ago")],
)
def test_table_is_aligned_and_shows_ages(heard: float, shown: str) -> None:
    one = FoldStatus("a", 0, "running", "main", 1, 9, 5, 0.75, 100.0, heard, None)
    other = FoldStatus("a_much_longer_name", 11, "done")
    lines = table([one, other])
    assert shown in lines[1]
    assert len({line.index(word) for line, word in zip(lines, ("state", "running", "done"), strict=True)}) == 1


def test_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_status(tmp_path / "none", NOW)


def test_names_of_strangers_control_no_terminal(tmp_path: Path) -> None:
    fold(tmp_path, "\x1b]0;title\x07/fold0", state="\x1b[2J", job_id="\u202e12\n34", host="h")
    lines = table(read_status(tmp_path, NOW))
    assert len(lines) == 2 and all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", ["heartbeat.json", "main/metrics.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_file_without_an_end_does_not_hold_the_table_up(tmp_path: Path, name: str, kind: str) -> None:
    folder = fold(tmp_path, "a/fold0")
    epochs(folder, 0.5)
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    (found,) = read_status(tmp_path, NOW)
    assert found.score is None
