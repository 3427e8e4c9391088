"""Inputs of a report: logs, film counts and evaluated films."""

import shutil
from pathlib import Path

import pytest
from report_runs import log_epochs

from pneumo_dist.report.inputs import (
    read_history,
)
from shards.errors import InputError


def test_stages_stand_in_the_order_of_the_config(tmp_path: Path) -> None:
    for stage in ("warm", "fine", "fine-10", "fine-2", "aside"):
        log_epochs(tmp_path, stage=stage, folds=(1, 0))
    (tmp_path / "fold0/config.yaml").write_text("stages:\n- name: warm  # exp.yaml\n- name: fine\n")
    found = read_history(tmp_path)
    assert list(found) == ["warm", "fine", "fine-2", "fine-10", "aside"]
    assert list(found["fine"]) == ["fold0", "fold1"]
    shutil.rmtree(tmp_path / "fold0/fine")
    (tmp_path / "fold1/fine/metrics.jsonl").write_text('{"score": 0.1\n')
    with pytest.raises(InputError, match=r"fold1/fine/metrics\.jsonl: not valid JSON"):
        read_history(tmp_path)
