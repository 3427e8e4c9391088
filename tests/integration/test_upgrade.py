"""Files of an older version (tests/fixtures/make.py) are read by this version, with the same results."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from integration.conftest import must, run_module

pytestmark = pytest.mark.slow

VERSIONS = ["e2bae37"]
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an older version's files."""
    return Path(shutil.copytree(FIXTURES / request.param, tmp_path / "old", symlinks=True))


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """Return the SHA-256 of a folder's files."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob(pattern))}


def train(old: Path, name: str, *more: str) -> tuple[object, ...]:
    return (
        *("pneumo_dist", "train", "--config", old / f"{name}.yaml", "--fold", 0, "--shards", old / "shards"),
        *("--runs", old / "runs", "--cpu", *more),
    )


def test_shards_are_valid(old: Path) -> None:
    must(run_module("shards", "verify", old / "shards"))


def test_unfinished_run_resumes_at_its_step_with_a_warning_about_other_code(old: Path) -> None:
    result = run_module(*train(old, "unfinished"))
    assert "second resumes after step 2" in must(result)
    assert "pneumo_dist 0.1.0 (source not noted)" in result.stderr
    lines = (old / "runs/unfinished/fold0/second/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(40))


def test_unfinished_run_with_other_keys_is_refused_with_their_names(old: Path) -> None:
    result = run_module(*train(old, "unfinished", "--set", "optim.lr=0.02", "--set", "data.mean=[0.1,0.1,0.1]"))
    assert result.returncode == 2
    assert "another data.mean, optim.lr;" in result.stderr


def test_finished_run_is_unchanged(old: Path) -> None:
    before = digests(old / "runs", "*.pt")
    assert "is trained" in must(run_module(*train(old, "finished")))
    assert before and digests(old / "runs", "*.pt") == before


def test_predictions_thresholds_and_submission_are_unchanged(old: Path) -> None:
    run, common = old / "runs/finished", ("--config", old / "finished.yaml", "--runs", old / "runs")
    before = digests(run, "*.tar")
    submission = (run / "test/submission.csv").read_text()
    must(run_module("pneumo_dist", "submit", *common))  # with the older thresholds
    assert (run / "test/submission.csv").read_text() == submission
    for split in ("oof", "test"):
        must(run_module("pneumo_dist", "predict", *common, "--shards", old / "shards", "--split", split, "--cpu"))
    assert before and digests(run, "*.tar") == before
    thresholds = json.loads((run / "oof/thresholds.json").read_text())
    must(run_module("pneumo_dist", "tune", *common))
    found = json.loads((run / "oof/thresholds.json").read_text())
    del found["rules"]["stacking"]  # a rule that earlier versions do not have
    assert found == {"format_version": 1, **thresholds}
    must(run_module("pneumo_dist", "report", *common, "--shards", old / "shards"))


def test_bundle_segments_a_film(old: Path, tmp_path: Path) -> None:
    must(
        run_module(
            "shards", "synth", tmp_path / "films", "--images", 1, "--size", 96, "--positive-rate", 1, "--seed", 5
        )
    )
    (film,) = (tmp_path / "films").rglob("*.dcm")
    out = tmp_path / "masks"
    must(run_module("pneumo_dist", "segment", film, "--bundle", old / "finished.bundle", "--out", out, "--cpu"))
    assert list(out.glob("*.png"))


def test_fixtures_are_small() -> None:
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 3_000_000
