"""The command select: from candidates that predict wrote to an ensemble that predict takes."""

import json
from pathlib import Path

import numpy as np
import pytest
from candidate_runs import candidate
from tiny_runs import HEAD, PLAIN, Trained

from pneumo_dist.cli.app import app
from pneumo_dist.config.ensemble import EnsembleConfig, load_either
from pneumo_dist.maps.store import Predictions
from pneumo_dist.thresholds.blends import mixed
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards


def must(*words: object) -> None:
    assert run(app, "pneumo_dist", [str(word) for word in words]) == EXIT_DONE


@pytest.mark.slow
def test_selected_ensemble_predicts_the_blend_that_was_scored(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for experiment in (PLAIN, HEAD):
        (runs / experiment.name).mkdir()
        for fold in (0, 1):
            (runs / experiment.name / f"fold{fold}").symlink_to(trained.runs / experiment.name / f"fold{fold}")
        (tmp_path / f"{experiment.name}.yaml").write_text(experiment.model_dump_json())
    second = {"name": "second", "members": [{"experiment": "plain", "checkpoints": "nth", "top_k": 2}]}
    (tmp_path / "second.yaml").write_text(
        json.dumps({**second, "tta": {"hflip": False, "scales": [1.5]}, "image_size": 64})
    )
    places = ["--shards", trained.shards.folder, "--runs", runs, "--split", "oof", "--cpu"]
    must("predict", "--config", tmp_path / "plain.yaml", *places)
    must("predict", "--config", tmp_path / "head.yaml", *places, "--no-hflip", "--top-k", 1)
    must("predict", "--config", tmp_path / "second.yaml", *places)
    best = runs / "plain-best/oof/predictions"
    must("predict", "--config", tmp_path / "plain.yaml", *places, "--no-hflip", "--top-k", 1, "--out", best)
    capsys.readouterr()
    must("select", runs, "--steps", 6, "--name", "mine", "--out", tmp_path / "mine.yaml")
    printed = capsys.readouterr().out.splitlines()
    names = ["head", "plain", "plain-best", "second"]
    assert [line.split()[0] for line in printed[1:5]] == names
    picks = [int(line.split()[2]) for line in printed[1:5]]
    assert sum(picks) > 0 and printed[-1] == f"ensemble: {tmp_path / 'mine.yaml'}"
    assert any(line.startswith("with a selection of the other folds 0.") for line in printed)
    config = load_either(tmp_path / "mine.yaml")
    assert isinstance(config, EnsembleConfig) and len(config.members) == sum(count > 0 for count in picks)
    must("predict", "--config", tmp_path / "mine.yaml", *places)
    predicted = Predictions(runs / "mine/oof/predictions")
    candidates = [Predictions(runs / name / "oof/predictions") for name in names]
    for index in range(len(predicted)):
        (expected,) = mixed([each.p8(index) for each in candidates], [picks]).astype(int)
        assert np.abs(predicted.p8(index) - expected).max() <= 1, "each stored map was rounded"
    must("tune", "--config", tmp_path / "mine.yaml", "--runs", runs)
    written = (tmp_path / "mine.yaml").read_bytes()
    must("select", runs, "--steps", 6, "--name", "mine", "--out", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_bytes() == written, "an earlier selection is no candidate"


def test_without_a_file_the_config_is_printed(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, noise in (("one", 10), ("two", 40)):
        candidate(films, tmp_path / name, noise=noise)
    must("select", tmp_path / "one", tmp_path / "two", "--steps", 2)
    text = capsys.readouterr().out.split("\n\n", 1)[1]
    (tmp_path / "printed.yaml").write_text(text)
    loaded = load_either(tmp_path / "printed.yaml")
    assert isinstance(loaded, EnsembleConfig) and loaded.name == "selected"
    assert "# best candidate, scored alike: 0." in text and "# equal weights, scored alike: 0." in text


def test_bad_places_are_named(films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidate(films, tmp_path / "one")
    (tmp_path / "untrained/fold0").mkdir(parents=True)
    for words, says in (
        ([tmp_path / "nowhere"], "nowhere: no such folder"),
        ([tmp_path], "one: one candidate leaves nothing to select; give more runs"),
        ([tmp_path / "one", tmp_path / "untrained"], "untrained/oof/predictions: no finished predictions; run"),
        ([tmp_path / "one", "--name", "one"], "one: was selected on all films, so it cannot be a candidate; leave it"),
        ([tmp_path, "--out", tmp_path], "is a folder; give the file to write"),
        ([tmp_path, "--steps", 0], "0 is not in the range"),
    ):
        assert run(app, "pneumo_dist", ["select", *map(str, words)]) == EXIT_USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
