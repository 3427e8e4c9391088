"""Classifiers predict class probabilities without maps, alone and as members of ensembles."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier_runs import CALLS, MEMBERS, with_classifier
from film_files import noise, write_film
from tiny_runs import ALONE, Trained, direct, image, row_of, stored
from tools.commands import ROOT

from pneumo_dist.cli.app import app
from pneumo_dist.config.ensemble import EnsembleConfig, load_either
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.maps.store import Predictions, open_predictions
from pneumo_dist.network.build import split_outputs
from pneumo_dist.predict.bundle import read_bundle, read_card, write_bundle
from pneumo_dist.predict.ensemble import EnsembleNetwork, map_shares, shares
from pneumo_dist.predict.onnx_file import export_bundle
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stacking import Stacking
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.stacking import gate_films
from pneumo_dist.thresholds.tune import film_measures
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards
from shards.errors import InputError

TTA = {"hflip": False}


PAGES = re.findall("^```yaml\n(.*?)^```$", (ROOT / "docs/inference.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def classed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return with_classifier(trained, tmp_path_factory.mktemp("classed"))


@torch.no_grad()
def class_probability(network: EnsembleNetwork, film: torch.Tensor) -> float | None:
    _, logits = split_outputs(network.read().build(network.name)(film))
    return None if logits is None else float(torch.sigmoid(logits))


@pytest.mark.slow
def test_predictions_of_a_classifier_are_a_table_without_maps(classed: Trained, tmp_path: Path) -> None:
    ensemble = classed.ensemble(name="calls", members=[{"experiment": "calls"}], tta=TTA)
    predictions = stored(classed, ensemble, tmp_path / "p", split="oof")
    assert not list((tmp_path / "p").glob("*.tar")) and len(predictions) == 12
    assert predictions.manifest["maps"] is False and "image_size" not in predictions.manifest
    rows = list(csv.DictReader((tmp_path / "p/probabilities.csv").open()))
    for row, cells in zip(predictions.rows, rows, strict=True):
        film = image(classed.shards, row_of(classed.shards, row["key"]))
        found = [class_probability(each, film) for each in ensemble.networks if each.fold == row["fold"]]
        assert len(found) == 2 and None not in found
        assert row["class_probability"] == pytest.approx(np.mean(found), abs=1e-6)  # type: ignore[arg-type]
        assert (cells["image_id"], cells["fold"]) == (row["image_id"], str(row["fold"]))
        assert np.float32(cells["probability"]) == np.float32(row["class_probability"])
    with pytest.raises(InputError, match="has class probabilities and no maps, because its networks are classifiers"):
        open_predictions(tmp_path / "p")


@pytest.mark.slow
def test_finished_blocks_of_a_classifier_are_kept(classed: Trained, tmp_path: Path) -> None:
    ensemble = classed.ensemble(name="calls", members=[{"experiment": "calls", "top_k": 1}])
    counts: list[int] = []
    options = PredictOptions("oof", block=4)
    predict(ensemble, classed.shards, tmp_path, ALONE, options)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / ".parts/pred-00001.json").unlink()
    predict(ensemble, classed.shards, tmp_path, ALONE, options, counts.append)
    assert counts[0] == 12 - 2 and sum(counts) == 12
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_maps_are_averaged_among_segmenters_and_classes_among_all_heads(classed: Trained, tmp_path: Path) -> None:
    ensemble = classed.ensemble(members=MEMBERS, tta=TTA)
    assert ensemble.has_maps and ensemble.image_size == 64
    assert map_shares(ensemble.networks) == [3 / 8, 3 / 8, 1 / 8, 1 / 8, 0, 0]
    assert shares(ensemble.networks) == [3 / 12, 3 / 12, 1 / 12, 1 / 12, 2 / 12, 2 / 12]
    segmenters = ensemble.networks[:4]
    for row, p8 in stored(classed, ensemble, tmp_path):
        film = image(classed.shards, row_of(classed.shards, row["key"]))
        maps = [direct(network, film)[0] for network in segmenters]
        mean = sum(share * each for share, each in zip(map_shares(ensemble.networks), maps, strict=False))
        assert np.abs(p8 - 255 * mean).max() <= 0.5 + 1e-3
        heads = [class_probability(network, film) for network in ensemble.networks]
        assert heads[0] is None and heads[4] is not None
        expected = float(np.average(np.array(heads[2:], np.float64), weights=[1, 1, 2, 2]))
        assert row["class_probability"] == pytest.approx(expected, abs=1e-6)
    assert (tmp_path / "probabilities.csv").exists()


def test_configs_of_the_page_are_valid(tmp_path: Path) -> None:
    loaded = []
    for text in PAGES:
        (tmp_path / "config.yaml").write_text(text)
        loaded.append(load_either(tmp_path / "config.yaml"))
    experiment, ensemble = loaded
    assert isinstance(experiment, Experiment) and experiment.model.is_classifier
    assert isinstance(ensemble, EnsembleConfig) and ensemble.rule == "stacking"


def test_shares_without_a_classifier_are_those_of_the_maps(trained: Trained) -> None:
    networks = trained.ensemble(members=MEMBERS[:2]).networks
    assert map_shares(networks) == shares(networks)


@pytest.mark.slow
def test_bundle_predicts_what_the_runs_predict(classed: Trained, tmp_path: Path) -> None:
    ensemble = classed.ensemble(members=MEMBERS, loader="torch", amp="float32")
    gate = Stacking(("class_probability", "mass"), (0, 9), (1, 2), (1, 0.5), -0.2, 0.5)
    rule = Rule(Triplet(0, 0, 0.4), stacking=gate)
    write_bundle(tmp_path / "b", ensemble, rule, None)
    again, found = read_bundle(tmp_path / "b")
    assert found == rule and "| 0.0000 |" in read_card(tmp_path / "b")
    data = again.data.model_copy(update={"loader": "torch"})
    one = stored(classed, ensemble, tmp_path / "runs")
    predict(replace(again, data=data), classed.shards, tmp_path / "again", ALONE, PredictOptions())
    assert Predictions(tmp_path / "again").digest == one.digest

    alone = classed.ensemble(members=MEMBERS[2:])
    write_bundle(tmp_path / "alone", alone, Rule(Triplet(0.5, 0, 0.5)), None)
    with pytest.raises(InputError, match="no part has a map"):
        read_bundle(tmp_path / "alone")


@pytest.mark.slow
def test_graph_of_an_ensemble_with_a_classifier_is_that_of_its_networks(classed: Trained, tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", classed.ensemble(members=MEMBERS), Rule(Triplet(0.5, 0, 0.5), gate=0.2), None)
    _, levels = export_bundle(tmp_path / "b", tmp_path / "b.onnx")  # compares both outputs with torch's
    assert levels < 0.1
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "b.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["probability", "class_probability"]


@pytest.mark.parametrize("command", ["tune", "submit", "report", "average"])
def test_commands_for_masks_refuse_a_classifier_alone(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config = tmp_path / "calls.yaml"
    config.write_text(CALLS.model_dump_json())
    more = {"report": ["--shards", str(films.folder)], "average": ["--bundle", str(tmp_path / "b")]}
    words = [command, "--config", str(config), "--runs", str(tmp_path), *more.get(command, [])]
    assert run(app, "pneumo_dist", words) == EXIT_USAGE
    assert capsys.readouterr().err.splitlines() == [
        "error: experiment calls: arch classifier has no map, and so no masks; make it a member of an ensemble with a "
        "segmenter"
    ]
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_an_ensemble_of_classifiers_is_refused(
    classed: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "only.yaml"
    config.write_text(
        "name: only\nmembers: [{experiment: calls}]\nthresholds: {top: 0.5, area: 3, bottom: 0.5}\nloader: torch\n"
    )
    words = ["average", "--config", str(config), "--runs", str(classed.runs), "--bundle", str(tmp_path / "b"), "--cpu"]
    assert run(app, "pneumo_dist", words) == EXIT_USAGE
    assert "all networks are classifiers, which find no masks; add a segmenter" in capsys.readouterr().err
    stored(classed, classed.ensemble(name="only", members=MEMBERS[2:]), classed.runs / "only/oof/predictions", "oof")
    assert run(app, "pneumo_dist", ["tune", "--config", str(config), "--runs", str(classed.runs)]) == EXIT_USAGE
    assert "has class probabilities and no maps" in capsys.readouterr().err


def must(*words: Any) -> None:
    assert run(app, "pneumo_dist", [str(word) for word in words]) == EXIT_DONE, words


@pytest.mark.slow
def test_segmenters_with_a_classifier_and_a_stacked_gate_are_one_config(
    classed: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, shards, name = tmp_path / "gated.yaml", classed.shards.folder, "gated"
    (page,) = [text for text in PAGES if f"name: {name}" in text]
    config.write_text(f"{page}loader: torch\n")
    (tmp_path / "calls.yaml").write_text(CALLS.model_dump_json())
    of_runs = ["--config", config, "--runs", classed.runs]
    for split in ("oof", "test"):
        must("predict", *of_runs, "--shards", shards, "--split", split, "--cpu")
    must("tune", *of_runs)
    must("submit", *of_runs)
    must("report", *of_runs, "--shards", shards)
    must("average", *of_runs, "--bundle", tmp_path / "b", "--cpu")
    place = classed.runs / name
    predictions = Predictions(place / "oof/predictions")
    gate = json.loads((place / "oof/thresholds.json").read_text())["rules"]["stacking"]["rule"]["stacking"]
    assert gate["features"][0] == "class_probability"
    assert gate_films(predictions, *film_measures(predictions, None, 0.5), 0.5).names == tuple(gate["features"])
    assert "Rule for masks: everything above" in (place / "report.html").read_text()
    assert read_bundle(tmp_path / "b")[1].stacking is not None
    write_film(tmp_path / "film.dcm", noise(64, 64))
    must("segment", tmp_path / "film.dcm", "--bundle", tmp_path / "b", "--out", tmp_path / "out", "--any-film", "--cpu")
    findings = json.loads((tmp_path / "out/film.findings.json").read_text())
    assert 0 <= findings["class_probability"] <= 1 and 0 <= findings["image_score"] <= 1
    # The table of the classifier is a file of class probabilities for another ensemble.
    must("predict", "--config", tmp_path / "calls.yaml", *of_runs[2:], "--shards", shards, "--split", "oof", "--cpu")
    table = classed.runs / "calls/oof/predictions/probabilities.csv"
    must("tune", *of_runs, "--class-probabilities", table)
