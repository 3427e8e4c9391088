"""Predictions that no ensemble can mix are refused in one line; a selection becomes a config that loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from candidate_runs import CHECKPOINT, candidate, change

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, TtaConfig, load_either
from pneumo_dist.maps.store import Predictions, encode_map, write_block, write_table
from pneumo_dist.thresholds.candidates import Candidate, as_yaml, ensemble_of, open_candidates
from shards.dataset.table import Shards
from shards.errors import InputError


def test_candidates_come_in_the_order_of_their_names(films: Shards, tmp_path: Path) -> None:
    for name in ("b", "a"):
        candidate(films, tmp_path / name)
    found = open_candidates({"b": tmp_path / "b", "a": tmp_path / "a"})
    assert [each.name for each in found] == ["a", "b"]
    assert [each.members[0].experiment for each in found] == ["a", "b"]


def refold(run: Path) -> None:
    rewrite(run, lambda row: {**row, "fold": 1 - row["fold"]})


def relabel(run: Path) -> None:
    rewrite(run, lambda row: {**row, "rle": "-1"})


def regroup(run: Path) -> None:
    rewrite(run, lambda row: {**row, "group": "someone"})


def rewrite(run: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    predictions = Predictions(run / "oof/predictions")
    known = {key: predictions.manifest[key] for key in ("split", "image_size", "parts", "members", "dataset")}
    write_table(predictions.folder, [changed(row) for row in predictions.rows], known)


def forget_a_fold(run: Path) -> None:
    parts = [{"name": f"b/fold0/{CHECKPOINT}", "fold": 0, "weight": 1.0}]
    change(run, parts=parts)


def borrow(run: Path) -> None:
    change(run, parts=[{"name": f"a/fold{fold}/{CHECKPOINT}", "fold": fold, "weight": 0.5} for fold in (0, 1)])


def prune(run: Path) -> None:
    (run / f"fold1/main/checkpoints/{CHECKPOINT}").unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: change(run, dataset="2" * 64), "b/oof/predictions: have other shards than .*a/oof/predictions"),
        (lambda run: change(run, dataset=None), "b/oof/predictions: do not name their members; predict again"),
        (lambda run: change(run, members=None), "b/oof/predictions: do not name their members; predict again"),
        (lambda run: change(run, split="holdout"), "b/oof/predictions: are not out-of-fold predictions"),
        (refold, "b/oof/predictions/predictions.parquet: film .* has another fold than in .*a/oof"),
        (relabel, "b/oof/predictions/predictions.parquet: film .* has another rle than in .*a/oof"),
        (regroup, "b/oof/predictions/predictions.parquet: film .* has another group than in .*a/oof"),
        (forget_a_fold, "b/oof/predictions: films of fold 1 have no network of b; predict again"),
        (borrow, "b/oof/predictions: films of fold 0 have no network of b; predict again"),
        (prune, rf"b/oof/predictions: were predicted by b/fold1/{CHECKPOINT}, which is no longer in"),
    ],
)
def test_other_films_folds_labels_and_networks_are_refused(
    films: Shards, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    for name in ("a", "b"):
        candidate(films, tmp_path / name)
    damage(tmp_path / "b")
    with pytest.raises(InputError, match=says):
        open_candidates({name: tmp_path / name for name in ("a", "b")})


def test_incomplete_and_smaller_predictions_and_other_places_are_refused(films: Shards, tmp_path: Path) -> None:
    candidate(films, tmp_path / "a")
    folders = {"a": tmp_path / "a"}
    with pytest.raises(InputError, match="a: one candidate leaves nothing to select"):
        open_candidates(folders)
    candidate(films, tmp_path / "part", rows=range(5))
    with pytest.raises(
        InputError, match=r"part/oof/predictions: hold 5 films, and .*a/oof/predictions 12; predict all"
    ):
        open_candidates({**folders, "part": tmp_path / "part"})
    candidate(films, tmp_path / "elsewhere/c")
    with pytest.raises(InputError, match=r"a and .*c: are in two folders; the members of an ensemble have one --runs"):
        open_candidates({**folders, "c": tmp_path / "elsewhere/c"})
    small = candidate(films, tmp_path / "small")
    rows = [{**row} for row in small.rows]
    blocks = write_block(
        small.folder / "pred-00000.tar", [(row, _half(small, index)) for index, row in enumerate(rows)]
    )
    write_table(small.folder, blocks, {**_known(small), "image_size": 48})
    with pytest.raises(
        InputError, match=r"small/oof/predictions: have maps of another size than .* \(48 px, not 96 px\)"
    ):
        open_candidates({**folders, "small": tmp_path / "small"})


def _half(predictions: Predictions, index: int) -> bytes:
    return encode_map(predictions.p8(index)[::2, ::2].copy())


def _known(predictions: Predictions) -> dict[str, object]:
    return {key: predictions.manifest[key] for key in ("split", "parts", "members", "dataset")}


def library(films: Shards, folder: Path, *members: tuple[MemberConfig, ...]) -> list[Candidate]:
    predictions = candidate(films, folder / "any")
    return [Candidate(str(number), predictions, each) for number, each in enumerate(members)]


BEST = MemberConfig(experiment="one", stage="main", checkpoints="best", tta=TtaConfig(hflip=False))
SECOND = MemberConfig(experiment="one", stage="main", checkpoints="nth", top_k=2, tta=TtaConfig(hflip=False))
PAIR = (
    MemberConfig(experiment="two", stage="s", top_k=3, weight=3, tta=TtaConfig(hflip=False)),
    MemberConfig(experiment="three", stage="s", top_k=3, weight=1, tta=TtaConfig(hflip=False)),
)


def test_picks_are_weights_and_an_ensemble_keeps_its_own(films: Shards, tmp_path: Path) -> None:
    ensemble = ensemble_of(library(films, tmp_path, (BEST,), (SECOND,), PAIR), (1, 0, 4), "mine")
    weights = {member.experiment: member.weight for member in ensemble.members}
    assert weights == {"one": 1, "two": 3, "three": 1}
    assert ensemble.tta == TtaConfig(hflip=False) and all(member.tta is None for member in ensemble.members)
    assert (ensemble.name, ensemble.image_size) == ("mine", 96)


def test_other_views_stay_with_their_members(films: Shards, tmp_path: Path) -> None:
    flipped = BEST.model_copy(update={"tta": TtaConfig()})
    ensemble = ensemble_of(library(films, tmp_path, (BEST,), (flipped,)), (2, 1), "mine")
    assert [member.tta for member in ensemble.members] == [TtaConfig(hflip=False), TtaConfig()]


@pytest.mark.parametrize("picks", [(1, 0, 0), (0, 2, 0), (1, 2, 4), (3, 1, 5)])
def test_written_config_loads_as_the_same_ensemble(films: Shards, tmp_path: Path, picks: tuple[int, ...]) -> None:
    flipped = BEST.model_copy(update={"tta": TtaConfig(scales=(1.0, 1.5), scale_weights=(2.0, 1.0))})
    ensemble = ensemble_of(library(films, tmp_path, (flipped,), (SECOND,), PAIR), picks, "mine")
    path = tmp_path / "mine.yaml"
    path.write_text(as_yaml(ensemble, ["scores"]))
    loaded = load_either(path)
    assert isinstance(loaded, EnsembleConfig) and loaded == ensemble
    assert path.read_text().startswith("# scores\nname: mine\nmembers:\n- ")


def test_classifier_has_no_share_of_the_selected_maps(films: Shards, tmp_path: Path) -> None:
    """The manifest's weight of a classifier's network is 0: the maps are those of the segmenters alone."""
    for name in ("a", "b"):
        candidate(films, tmp_path / name)
    parts = [
        {"name": f"{experiment}/fold{fold}/{CHECKPOINT}", "fold": fold, "weight": weight}
        for experiment, weight in (("b", 0.5), ("calls", 0.0))
        for fold in (0, 1)
    ]
    for fold in (0, 1):
        path = tmp_path / f"calls/fold{fold}/main/checkpoints/{CHECKPOINT}"
        path.parent.mkdir(parents=True)
        path.touch()
    members = [{"experiment": "b", "weight": 2.0}, {"experiment": "calls", "weight": 5.0}]
    change(tmp_path / "b", parts=parts, members=members)
    found = open_candidates({"a": tmp_path / "a", "b": tmp_path / "b"})
    weights = {member.experiment: member.weight for member in ensemble_of(found, [1, 3], "x").members}
    assert weights == {"a": 1.0, "b": 3.0, "calls": 7.5}


def test_classifiers_alone_are_refused(films: Shards, tmp_path: Path) -> None:
    for name in ("a", "b"):
        candidate(films, tmp_path / name)
    rows = [
        {**row, "tar": None, "offset": None, "size": None, "crc32": None, "class_probability": 0.5}
        for row in Predictions(tmp_path / "b/oof/predictions").rows
    ]
    write_table(tmp_path / "b/oof/predictions", rows, {"split": "oof", "maps": False})
    with pytest.raises(InputError, match="b/oof/predictions: has class probabilities and no maps, because"):
        open_candidates({"a": tmp_path / "a", "b": tmp_path / "b"})
