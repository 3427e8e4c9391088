"""Two hundred edits of stored files; tests/tools/fuzz_stored.py makes any number."""

from pathlib import Path

from tools.fuzz_stored import fuzz


def test_edited_files_end_in_the_right_answer_or_a_clear_refusal(tmp_path: Path) -> None:
    counts, failures = fuzz(tmp_path, count=200, seed=1)
    assert failures == {}, "again: python -m tests.tools.fuzz_stored --seed 1 --case NUMBER"
    assert sum(counts.values()) == 200
    for what in ("bundle", "predictions", "samples", "checkpoint", "thresholds", "config"):
        assert counts[f"{what} refused"] > 0 and counts[f"{what} refused"] < 200, counts
