"""The whole line as users run it: train both folds, predict, tune, submit, report."""

import csv
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from images import decode
from integration.conftest import ROOT, UNET, environment, must, run_module, write_config

from pneumo_dist.maps.store import Predictions
from pneumo_dist.output.submission import submission_rows
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset import rle
from shards.dataset.table import Shards

pytestmark = pytest.mark.slow

REAL = Path(os.environ.get("PNEUMO_REAL_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def chain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run of launch/pipeline.sh from films to a report, on two ranks: its config, runs folder and output."""
    folder = tmp_path_factory.mktemp("trained")
    stages = [{"name": "only", "epochs": 2}]
    config = write_config(folder / "tiny.yaml", model=UNET, stages=stages, global_batch=4, micro_batch=2)
    command = ["bash", "launch/pipeline.sh", "--cpu", "2", "--folds", "2"]
    options: list[str | Path] = ["--config", config, "--shards", folder / "shards", "--runs", folder / "runs", "--"]
    films, test = (dataset.parent / name / "dicom-images" for name in ("films", "test"))
    options += ["--dicom", films, "--rle", films.parent / "train-rle.csv", "--test-dicom", test, "--holdout", "0.1"]
    done = subprocess.run(
        [*command, *options, "--image-size", "64"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return config, folder / "runs", must(done)


@pytest.fixture(scope="module")
def trained(chain: tuple[Path, Path, str]) -> tuple[Path, Path]:
    """Config and runs folder of both folds, trained on two ranks."""
    return chain[:2]


@pytest.fixture(scope="module")
def built(chain: tuple[Path, Path, str]) -> Path:
    """The shards of the run."""
    return chain[1].parent / "shards"


def predict(config: Path, shards: Path, runs: Path, split: str, ranks: int) -> None:
    must(
        run_module(
            *("pneumo_dist", "predict", "--cpu", "--config", config, "--shards", shards, "--runs", runs),
            *("--split", split, "--block", 5),
            ranks=ranks,
        )
    )


def test_from_films_to_submission_and_report(chain: tuple[Path, Path, str], built: Path) -> None:
    config, runs, printed = chain
    (share,) = re.findall(r"always empty (0\.\d{4})", printed)
    out_of_fold = Predictions(runs / "tiny/oof/predictions")
    assert float(share) == pytest.approx(np.mean([row["rle"] == "-1" for row in out_of_fold.rows]), abs=1e-4)
    rows = list(csv.reader((runs / "tiny/test/submission.csv").open()))
    shards = Shards(built)
    assert rows[0] == ["ImageId", "EncodedPixels"]
    assert [row[0] for row in rows[1:]] == shards.column("image_id")[shards.indices("test")].tolist()
    assert len(Predictions(runs / "tiny/holdout/predictions")) == len(shards.indices("holdout")) > 0
    for _, text in rows[1:]:
        assert rle.encode(rle.decode(text, 96, 96)) == text
    other = runs / "tiny/test/everything.csv"
    given = ("--triplet", 0.0, 0, 0.0, "--out", other)
    must(run_module("pneumo_dist", "submit", "--config", config, "--runs", runs, *given))
    everything = list(csv.reader(other.open()))[1:]
    assert all(text != "-1" for _, text in everything), "p > 0 with no smallest area leaves no film empty"
    assert "<table>" in (runs / "tiny/report.html").read_text()
    assert cv2.imread(str(runs / "tiny/overlays.png")) is not None


def test_trained_folds_are_not_trained_again(chain: tuple[Path, Path, str], built: Path) -> None:
    config, runs, _ = chain
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")}
    status = must(run_module("pneumo_dist", "status", runs))
    assert [line.split()[:3] for line in status.splitlines()[1:]] == [["tiny", "0", "done"], ["tiny", "1", "done"]]
    common = ["--config", config, "--shards", built, "--runs", runs]
    arguments = [*common, "--fold", "1"]
    assert must(run_module("pneumo_dist", "train", "--dry-run", *arguments)).endswith("state: done\n")
    changed = run_module("pneumo_dist", "train", "--dry-run", *arguments, "--set", "optim.lr=1e-5")
    assert changed.returncode == 2 and "was trained with another optim.lr" in changed.stderr
    for listed, folds in ((["--fold", "1", "--folds", "all"], (1, 0)), (["--folds", "0,1"], (0, 1))):
        command = ["bash", "launch/train.sh", "--cpu", "2", *map(str, common), *listed]
        done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert must(done) == "".join(f"already trained: {runs}/tiny/fold{fold}\n" for fold in folds)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_run_folder_has_the_documented_files(trained: tuple[Path, Path]) -> None:
    stage = trained[1] / "tiny/fold0/only"
    assert (trained[1] / "tiny/fold0/config.yaml").read_text().startswith("name: tiny  # tiny.yaml")
    assert (stage / "checkpoints/best").is_symlink()
    assert len(list((stage / "tensorboard").glob("events.*"))) == 1
    assert len((stage / "summary.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("split", ["oof", "test"])
def test_predictions_have_the_same_bytes_on_one_and_two_ranks_and_after_an_interruption(
    trained: tuple[Path, Path], built: Path, tmp_path: Path, split: str
) -> None:
    config, runs = trained
    shutil.copytree(runs, tmp_path / "runs", symlinks=True, ignore=shutil.ignore_patterns("oof", "test"))
    predict(config, built, tmp_path / "runs", split, 1)
    folder = tmp_path / "runs/tiny" / split / "predictions"
    alone = {path.name: path.read_bytes() for path in folder.glob("pred*")}
    assert len(alone) > 1
    for name in ("pred-00000.tar", "predictions.parquet", "manifest.json"):
        (folder / name).unlink()
    predict(config, built, tmp_path / "runs", split, 2)
    assert {path.name: path.read_bytes() for path in folder.glob("pred*")} == alone
    shutil.rmtree(folder)
    predict(config, built, tmp_path / "runs", split, 2)
    assert {path.name: path.read_bytes() for path in folder.glob("pred*")} == alone


def test_bundle_predicts_and_segments_new_films(
    trained: tuple[Path, Path], built: Path, dataset: Path, tmp_path: Path
) -> None:
    _, runs = trained
    config, bundle = tmp_path / "blend.yaml", tmp_path / "blend.bundle"
    thresholds = "thresholds: {top: 0.3, area: 1, bottom: 0.2}"
    config.write_text(f"name: blend\nmembers: [{{experiment: tiny, average: weights}}]\n{thresholds}\n")
    average = ("pneumo_dist", "average", "--cpu", "--config", config, "--shards", built, "--runs", runs)
    assert "bundle of 2 networks" in must(run_module(*average, "--bundle", bundle, ranks=2))
    made = {path: path.stat().st_mtime_ns for path in (runs / "blend").rglob("step-*.pt")}
    assert len(made) == 2
    predict(config, built, runs, "test", 2)
    assert {path: path.stat().st_mtime_ns for path in (runs / "blend").rglob("step-*.pt")} == made

    films = dataset.parent / "test/dicom-images"
    given = ("pneumo_dist", "predict", "--cpu", "--bundle", bundle, "--dicom", films, "--out", tmp_path / "new/maps")
    must(run_module(*given, "--block", 5))
    one, other = Predictions(runs / "blend/test/predictions"), Predictions(tmp_path / "new/maps")
    assert [row["image_id"] for row in one.rows] == [row["image_id"] for row in other.rows] and len(one) == 5
    for index in range(5):
        assert (one.p8(index) == other.p8(index)).all()
    stamp = (tmp_path / "new/maps/pred-00000.tar").stat().st_mtime_ns
    must(run_module(*given, "--block", 5))
    assert (tmp_path / "new/maps/pred-00000.tar").stat().st_mtime_ns == stamp, "what is done is not done again"

    (tmp_path / "text.dcm").write_text("no film")
    result = run_module(
        *("pneumo_dist", "segment", "--cpu", films, tmp_path / "text.dcm"),
        *("--bundle", bundle, "--out", tmp_path / "masks"),
    )
    assert result.returncode == 2 and result.stderr.count("text.dcm: refused") == 1, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 5
    expected = submission_rows(other, Rule(Triplet(0.3, 1, 0.2)))
    for line in lines:
        image_id = line["film"].removesuffix(".dcm")
        mask = decode((tmp_path / "masks" / line["files"]["mask"]).read_bytes())
        assert rle.encode((mask > 0).astype(np.uint8)) == expected[image_id]
        assert line["called"] == (expected[image_id] != "-1")
        assert (tmp_path / "masks" / line["files"]["segmentation"]).exists()


def test_doctor_reports_once_under_torchrun() -> None:
    """The command of docs/doctor.md."""
    printed = must(run_module("pneumo_dist", "doctor", "--cpu", ranks=2))
    assert printed.count("doctor on ") == 1 and "ranks per node 2, on the CPU" in printed


def test_out_of_fold_prediction_refuses_resplit_shards(
    trained: tuple[Path, Path], dataset: Path, tmp_path: Path
) -> None:
    config, runs = trained
    films = dataset.parent / "films"
    must(
        run_module(
            *("shards", "build", "--dicom", films / "dicom-images", "--rle", films / "train-rle.csv"),
            *("--out", tmp_path / "other", "--image-size", 64, "--folds", 2, "--seed", 7, "--workers", 1),
        )
    )
    result = run_module(
        *("pneumo_dist", "predict", "--cpu", "--config", config, "--shards", tmp_path / "other"),
        *("--runs", runs, "--split", "oof"),
    )
    assert result.returncode == 2
    assert "trained on other films" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "names", "errors"),
    [
        (["--fold", "7"], "no fold 7", 1),
        (["--fold", "0", "--set", "micro_batch=3"], "global_batch: 3 or 6", 2),
        (["--fold", "0", "--set", "optim.lrr=1"], "did you mean lr", 1),
    ],
)
def test_bad_input_gives_a_line_per_error_and_no_run(
    dataset: Path, tmp_path: Path, arguments: list[str], names: str, errors: int
) -> None:
    config = write_config(tmp_path / "tiny.yaml")
    result = run_module(
        "pneumo_dist",
        "train",
        "--cpu",
        "--config",
        config,
        "--shards",
        dataset,
        "--runs",
        tmp_path / "runs",
        *arguments,
    )
    assert result.returncode == 2
    assert names in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == errors and all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not (REAL / "siim_sample").is_dir(), reason=f"the real films are not in {REAL} (PNEUMO_REAL_DATA)")
def test_real_films_train_to_a_lower_loss_and_reach_a_submission(tmp_path: Path) -> None:
    sample = REAL / "siim_sample"
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    must(
        run_module(
            *("shards", "build", "--dicom", sample, "--rle", sample / "train-rle-sample.csv"),
            *("--test-images", REAL / "nih_png", "--out", shards, "--image-size", 64, "--folds", 2, "--workers", 1),
        )
    )
    table = Shards(shards)
    assert len(table.indices("train")) == 10
    assert table.column("has_mask").sum() == 5
    config = write_config(tmp_path / "tiny.yaml", stages=[{"name": "only", "epochs": 6}], global_batch=2)
    for fold in (0, 1):
        must(
            run_module(
                *("pneumo_dist", "train", "--cpu", "--config", config, "--fold", fold),
                *("--shards", shards, "--runs", runs),
                ranks=2,
            )
        )
        lines = (runs / f"tiny/fold{fold}/only/metrics.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        assert losses[-1] < losses[0]
    for split in ("oof", "test"):
        predict(config, shards, runs, split, 2)
    must(run_module("pneumo_dist", "tune", "--config", config, "--runs", runs))
    must(run_module("pneumo_dist", "submit", "--config", config, "--runs", runs))
    assert len((runs / "tiny/test/submission.csv").read_text().splitlines()) == 3
