"""The command status."""

import json
import time
from pathlib import Path

from click.testing import CliRunner

from pneumo_dist.cli.status import status

BEAT = {"state": "done", "stage": "main", "epoch": 4, "epochs": 30, "step": 130, "job_id": "12"}


def test_status_prints_a_table_or_a_line_of_json_per_fold(tmp_path: Path) -> None:
    runner = CliRunner()
    assert f"{tmp_path}: no fold has been started" in runner.invoke(status, [str(tmp_path)]).output
    for name in ("a/fold0", "b/fold1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "heartbeat.json").write_text(json.dumps({**BEAT, "time": time.time()}))
    lines = runner.invoke(status, [str(tmp_path)]).output.splitlines()
    assert len(lines) == 3 and all("done" in line for line in lines[1:])
    folds = [json.loads(line) for line in runner.invoke(status, [str(tmp_path), "--json"]).output.splitlines()]
    assert [(fold["experiment"], fold["fold"], fold["state"]) for fold in folds] == [("a", 0, "done"), ("b", 1, "done")]
