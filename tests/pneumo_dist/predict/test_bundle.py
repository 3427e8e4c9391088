"""One file in place of a run: it predicts the same, and damage is noticed."""

import zipfile
from pathlib import Path

import pytest
from damage import truncate
from tiny_runs import ALONE, Trained

from pneumo_dist.predict.bundle import read_bundle, write_bundle
from pneumo_dist.predict.ensemble import shares
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.predict.store import Predictions
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.errors import InputError

RULE = Rule(Triplet(0.7, 800, 0.3), smallest_part=100, gate=0.25)
MEMBERS = [{"experiment": "plain", "weight": 3, "average": "weights"}, {"experiment": "head", "top_k": 1}]
SCORES = {
    "score": {"dice": 0.8123, "positive_dice": 0.5, "always_empty": 0.7, "films": 12, "positives": 6},
    "dice_tuned_on_other_folds": {"mean": 0.8011, "low": 0.7, "high": 0.9},
}


def test_bundle_predicts_what_its_runs_predict(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=MEMBERS, tta={"scales": [1, 1.5]}, loader="host")
    write_bundle(tmp_path / "both.bundle", ensemble, RULE, SCORES)
    again, rule = read_bundle(tmp_path / "both.bundle", "host")
    assert rule == RULE
    assert shares(again.parts) == shares(ensemble.parts)
    for name, each in (("runs", ensemble), ("bundle", again)):
        predict(each, trained.shards, tmp_path / name, ALONE, PredictOptions())
    one, other = Predictions(tmp_path / "runs"), Predictions(tmp_path / "bundle")
    assert one.digest == other.digest and one.manifest == other.manifest
    assert len({p8.tobytes() for _, p8 in one}) == 5


def test_file_is_plain_parts_and_the_same_bytes_again(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=MEMBERS)
    for name in ("one", "other"):
        write_bundle(tmp_path / name, ensemble, RULE, SCORES)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        names = archive.namelist()
        card = archive.read("MODEL_CARD.md").decode()
    assert names == [*(f"weights/00{number}.safetensors" for number in range(4)), "bundle.json", "MODEL_CARD.md"]
    for text in ("not for diagnosis", "0.8123 over 12 films", "0.8011", "Fewer than 800 pixels above 0.7000"):
        assert text in card
    for part, share in zip(ensemble.parts, shares(ensemble.parts), strict=True):
        assert f"| {part.name} | {share:.4f} |" in card
    write_bundle(tmp_path / "one", ensemble, RULE, None)
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert "set by hand" in archive.read("MODEL_CARD.md").decode()


def test_flipped_bits_are_noticed_wherever_they_are(trained: Trained, tmp_path: Path) -> None:
    write_bundle(tmp_path / "good", trained.ensemble(), RULE, SCORES)
    content = (tmp_path / "good").read_bytes()
    path = tmp_path / "damaged"
    with zipfile.ZipFile(tmp_path / "good") as archive:
        # Beyond a member's local header, whose dates nobody reads.
        places = [info.header_offset + 200 + info.file_size // 2 for info in archive.infolist()[:-1]]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(InputError, match="damaged"):
            ensemble, _ = read_bundle(path)
            for part in ensemble.parts:
                part.read()


def test_what_is_no_bundle_is_an_input_error(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(InputError, match="no such bundle"):
        read_bundle(path)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"file: damaged or no bundle"):
        read_bundle(path)
    write_bundle(path, trained.ensemble(), RULE, None)
    truncate(path)
    with pytest.raises(InputError, match=r"file: damaged or no bundle"):
        read_bundle(path)
    for text in ("[]", "{}", '{"format": "pneumo_dist-bundle", "format_version": 99}', "no json"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bundle.json", text)
        with pytest.raises(InputError, match=r"file: not a bundle"):
            read_bundle(path)
    with pytest.raises(InputError, match="damaged or no bundle"):
        read_bundle(tmp_path)
