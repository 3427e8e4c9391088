"""Prediction on one rank: the stored maps, the networks that made them, and refused inputs."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from damage import flip_bit
from tiny_runs import ALONE, MIXED, Trained, direct, image, row_of, stored

from pneumo_dist.maps.store import Predictions, write_block
from pneumo_dist.predict import predict as prediction
from pneumo_dist.predict.ensemble import shares
from pneumo_dist.predict.predict import PredictOptions
from shards.errors import InputError

BOTH = [{"experiment": "plain", "weight": 3, "top_k": 1}, {"experiment": "head", "weight": 1}]
NO_TTA = {"hflip": False}


def test_saved_prediction_is_the_weighted_mean_of_direct_forward_passes(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=BOTH, tta=NO_TTA)
    assert [network.name.split("/")[:2] for network in ensemble.networks] == [
        *[["plain", "fold0"], ["plain", "fold1"]],
        *[["head", "fold0"]] * 2,
        *[["head", "fold1"]] * 2,
    ]
    assert shares(ensemble.networks) == pytest.approx([3 / 8, 3 / 8, *[1 / 16] * 4])
    predictions = stored(trained, ensemble, tmp_path)
    assert len(predictions) == 5
    for row, p8 in predictions:
        film = image(trained.shards, row_of(trained.shards, row["key"]))
        outputs = [direct(network, film) for network in ensemble.networks]
        mean = sum(weight * each for weight, (each, _) in zip([3 / 8, 3 / 8, *[1 / 16] * 4], outputs, strict=True))
        assert np.abs(p8 / 255 - mean).max() <= 1 / 255
        classes = [value for _, value in outputs if value is not None]
        assert len(classes) == 4
        assert row["class_probability"] == pytest.approx(np.mean(classes), abs=1e-5)
    assert predictions.manifest["parts"][0] == {"name": ensemble.networks[0].name, "fold": 0, "weight": 3 / 8}


def test_out_of_fold_films_are_predicted_by_their_own_folds_networks_alone(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(tta=NO_TTA)
    predictions = stored(trained, ensemble, tmp_path, "oof")
    assert len(predictions) == 12
    for row, p8 in predictions:
        film = image(trained.shards, row_of(trained.shards, row["key"]))
        own = [direct(network, film)[0] for network in ensemble.networks if network.fold == row["fold"]]
        assert len(own) == 2
        assert np.abs(p8 / 255 - np.mean(own, axis=0)).max() <= 1 / 255
        assert row["class_probability"] is None
    (member,) = predictions.manifest["members"]
    assert (member["experiment"], member["stage"], member["top_k"]) == ("plain", "main", 2)
    assert member["tta"] == {"hflip": False, "scales": [1.0], "scale_weights": None}
    # Such a member alone predicts the same.
    alone = trained.ensemble(members=[member], tta={"hflip": True})
    assert stored(trained, alone, tmp_path / "alone", "oof").digest == predictions.digest


def test_flip_and_scales_are_averaged(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=[{"experiment": "head", "folds": [1], "top_k": 1}], tta={"scales": [1, 1.5]})
    (network,) = ensemble.networks
    for row, p8 in stored(trained, ensemble, tmp_path):
        film = image(trained.shards, row_of(trained.shards, row["key"]))
        views, classes = [], []
        for side in (64, 96):
            scaled = film if side == 64 else F.interpolate(film, (side, side), mode="bilinear")
            for flip in (False, True):
                seen, probability = direct(network, scaled.flip(-1) if flip else scaled)
                seen = seen[:, ::-1] if flip else seen
                back = F.interpolate(
                    torch.from_numpy(seen.copy())[None, None], (64, 64), mode="bilinear", antialias=side > 64
                )
                views.append(back[0, 0].numpy())
                assert probability is not None
                classes.append(probability)
        assert np.abs(p8 / 255 - np.mean(views, axis=0)).max() <= 1 / 255
        assert row["class_probability"] == pytest.approx(np.mean(classes), abs=1e-5)


def test_mixed_blend_resumes_and_another_input_replaces_its_blocks(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = trained.ensemble(members=MIXED)
    stored(trained, ensemble, tmp_path, "oof", block=4)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("pred*")}
    (tmp_path / "pred-00001.tar").unlink()
    written = list_writes(monkeypatch)
    stored(trained, ensemble, tmp_path, "oof", block=4)
    assert written == ["pred-00001.tar"] and len(before) == 5
    assert {path.name: path.read_bytes() for path in tmp_path.glob("pred*")} == before
    other = trained.ensemble(members=[*MIXED[:2], {**MIXED[2], "image_size": 64}], image_size=96)
    assert [network.name for network in other.networks] == [network.name for network in ensemble.networks]
    stored(trained, other, tmp_path, "oof", block=4)
    assert written[1:] == [f"pred-0000{number}.tar" for number in range(4)]


def list_writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the name of every tar that a prediction writes from now on."""
    written: list[str] = []

    def noted(path: Path, films: Any) -> Any:
        written.append(path.name)
        return write_block(path, films)

    monkeypatch.setattr(prediction, "write_block", noted)
    return written


def test_interrupted_prediction_ends_like_an_uninterrupted_one(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble = trained.ensemble()
    whole = stored(trained, ensemble, tmp_path / "whole", "oof", block=4)
    written: list[str] = []

    def counted(path: Path, films: Any) -> Any:
        if len(written) == 2 and not (path.parent / "pred-00002.tar").exists():
            written.append("stopped")
            raise KeyboardInterrupt
        written.append(path.name)
        return write_block(path, films)

    monkeypatch.setattr(prediction, "write_block", counted)
    with pytest.raises(KeyboardInterrupt):
        stored(trained, ensemble, tmp_path / "cut", "oof", block=4)
    with pytest.raises(InputError, match="no finished predictions"):
        Predictions(tmp_path / "cut")
    written = list_writes(monkeypatch)
    cut = stored(trained, ensemble, tmp_path / "cut", "oof", block=4)
    assert written == ["pred-00002.tar", "pred-00003.tar"]
    assert cut.digest == whole.digest and cut.manifest == whole.manifest
    for path in (tmp_path / "whole").glob("pred*"):
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()


def test_other_networks_or_views_replace_earlier_predictions_completely(trained: Trained, tmp_path: Path) -> None:
    first = stored(trained, trained.ensemble(), tmp_path, "oof", block=2)
    second = stored(trained, trained.ensemble(tta=NO_TTA), tmp_path, "oof", block=4)
    assert first.digest != second.digest
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [f"pred-0000{number}.tar" for number in range(4)]
    assert len(list((tmp_path / ".parts").iterdir())) == 4


def copied(trained: Trained, folder: Path) -> Trained:
    shutil.copytree(trained.runs, folder, symlinks=True)
    return Trained(trained.shards, folder)


@pytest.mark.parametrize("split", ["oof"])
def test_network_of_another_fold_is_refused(trained: Trained, tmp_path: Path, split: str) -> None:
    other = copied(trained, tmp_path / "runs")
    for one, two in ((0, 2), (1, 0), (2, 1)):
        (other.runs / f"plain/fold{one}").rename(other.runs / f"plain/fold{two}")
    with pytest.raises(InputError, match=r"plain/fold0/step-.*trained on other films than fold 0"):
        stored(other, other.ensemble(), tmp_path / "out", split)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.tar"))


def test_network_whose_ancestor_saw_the_fold_is_refused(trained: Trained, tmp_path: Path) -> None:
    from pneumo_dist.runs.checkpoint import load_checkpoint
    from pneumo_dist.runs.checkpoint_folder import CheckpointFolder

    other = copied(trained, tmp_path / "runs")
    folder = other.runs / "plain/fold0/main/checkpoints"
    foreign = load_checkpoint(other.runs / "plain/fold1/early/checkpoints/last")["lineage"][0]
    for file in CheckpointFolder(folder).files():
        state = load_checkpoint(file.path)
        assert [each["stage"] for each in state["lineage"]] == ["early", "main"]
        state["lineage"][0] = foreign
        file.path.unlink()
        CheckpointFolder(folder).save(file.step, state)
    with pytest.raises(InputError, match="its stage early was trained on other films than fold 0"):
        stored(other, other.ensemble(), tmp_path / "out", "oof")


def test_member_without_a_fold_has_no_out_of_fold_prediction(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=[{"experiment": "plain"}, {"experiment": "other", "folds": [0]}])
    with pytest.raises(InputError, match="other has no fold 1"):
        stored(trained, ensemble, tmp_path, "oof")
    assert len(stored(trained, ensemble, tmp_path, "oof", folds=(0,))) == 6
    assert len(stored(trained, ensemble, tmp_path)) == 5


def test_split_without_films_is_an_input_error(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no holdout films"):
        stored(trained, trained.ensemble(), tmp_path, "holdout")


@pytest.mark.parametrize(("options", "named"), [({"block": 0}, "--block 0"), ({"models": 0}, "--models-in-memory 0")])
def test_impossible_options_are_input_errors(options: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=named):
        PredictOptions(**options)  # type: ignore[arg-type]


def cut(tar: Path, row: dict[str, Any]) -> None:
    tar.write_bytes(tar.read_bytes()[: row["offset"] + 10])


def flip(tar: Path, row: dict[str, Any]) -> None:
    flip_bit(tar, row["offset"] + row["size"] // 2)


def remove(tar: Path, row: dict[str, Any]) -> None:
    tar.unlink()


@pytest.mark.parametrize("damage", [cut, flip, remove])
def test_damaged_block_is_predicted_again_and_the_others_are_not(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path, dict[str, Any]], None]
) -> None:
    ensemble = trained.ensemble()
    whole = stored(trained, ensemble, tmp_path, block=2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("pred*")}
    damage(tmp_path / "pred-00001.tar", next(row for row in whole.rows if row["tar"] == "pred-00001.tar"))
    written = list_writes(monkeypatch)
    stored(trained, ensemble, tmp_path, block=2)
    assert written == ["pred-00001.tar"] and len(before) == 4
    assert {path.name: path.read_bytes() for path in tmp_path.glob("pred*")} == before


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"digest": 3}'])
def test_block_with_a_damaged_record_is_predicted_again(trained: Trained, tmp_path: Path, text: str) -> None:
    ensemble = trained.ensemble()
    digest = stored(trained, ensemble, tmp_path).digest
    (tmp_path / ".parts/pred-00000.json").write_text(text)
    assert stored(trained, ensemble, tmp_path).digest == digest


def test_progress_is_told_batch_by_batch_and_adds_up(trained: Trained, tmp_path: Path) -> None:
    told = list[int]()
    ensemble = trained.ensemble(eval_batch=2)
    for again in ([0, 2, 2, 1, 0], [5]):
        prediction.predict(ensemble, trained.shards, tmp_path, ALONE, PredictOptions("test"), on_films=told.append)
        assert told == again
        told.clear()
