"""A few seconds of damaged films and datasets; tests/tools/fuzz_shards.py runs for any time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_damaged_bytes_end_in_the_right_result_or_a_clear_refusal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.tools.fuzz_shards", "--seconds", "5", "--seed", "1"]
    # Synthetic films only, so that the cases are the same everywhere.
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PNEUMO_REAL_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 20, done.stdout
