"""A bundle predicts the same as its runs, and damage is noticed."""

import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from damage import truncate
from tiny_runs import ALONE, Trained, stored

from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.maps.store import Predictions
from pneumo_dist.predict.bundle import read_bundle, read_card, write_bundle
from pneumo_dist.predict.ensemble import shares
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stacking import Stacking
from pneumo_dist.scoring.triplet import Triplet
from shards.errors import InputError

RULE = Rule(Triplet(0.7, 800, 0.3), smallest_part=100, gate=0.25)
RULE_WITHOUT_GATE = replace(RULE, gate=0.0)
MEMBERS = [{"experiment": "plain", "weight": 3, "average": "weights"}, {"experiment": "head", "top_k": 1}]
SCORES = {
    "score": {"dice": 0.8123, "positive_dice": 0.5, "always_empty": 0.7, "films": 12, "positives": 6},
    "dice_tuned_on_other_folds": {"mean": 0.8011, "low": 0.7, "high": 0.9},
}


def test_bundle_predicts_what_its_runs_predict(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=MEMBERS, tta={"scales": [1, 1.5]}, loader="torch")
    write_bundle(tmp_path / "both.bundle", ensemble, RULE, SCORES)
    again, rule = read_bundle(tmp_path / "both.bundle")
    assert again.data.loader == DataConfig().loader and rule == RULE
    again = replace(again, data=again.data.model_copy(update={"loader": "torch"}))
    assert shares(again.networks) == shares(ensemble.networks)
    for name, each in (("runs", ensemble), ("bundle", again)):
        predict(each, trained.shards, tmp_path / name, ALONE, PredictOptions())
    one, other = Predictions(tmp_path / "runs"), Predictions(tmp_path / "bundle")
    assert one.digest == other.digest and one.manifest == other.manifest
    assert len({p8.tobytes() for _, p8 in one}) == 5


def test_members_are_stored_plainly_and_the_same_bytes_again(trained: Trained, tmp_path: Path) -> None:
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
    for network, share in zip(ensemble.networks, shares(ensemble.networks), strict=True):
        assert f"| {network.name} | {share:.4f} |" in card
    write_bundle(tmp_path / "one", ensemble, RULE, None)
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert "set by hand" in archive.read("MODEL_CARD.md").decode()


def test_a_stacked_gate_is_stored_with_its_scores(trained: Trained, tmp_path: Path) -> None:
    gate = Stacking(("class_probability", "mass"), (0.1, 5), (1, 2), (0.5, 1 / 3), -0.2, 0.375)
    rule, ensemble = Rule(Triplet(0, 0, 0.3), stacking=gate), trained.ensemble(members=MEMBERS)
    unseen = {"mean": 0.8222, "low": 0.7, "high": 0.9}
    tuned = {"stacking": {"dice": 0.8333, "called": 0.5, "dice_tuned_on_other_folds": unseen}}
    write_bundle(tmp_path / "b", ensemble, rule, {**SCORES, "rules": tuned, "rule": "stacking"})
    assert read_bundle(tmp_path / "b")[1] == rule
    card = read_card(tmp_path / "b")
    for text in ("A probability of 0.3750 or less by the stacked gate makes a film empty", "0.8333 over", "0.8222"):
        assert text in card


def test_flipped_bits_are_noticed_wherever_they_are(trained: Trained, tmp_path: Path) -> None:
    write_bundle(tmp_path / "good", trained.ensemble(), RULE, SCORES)
    content = (tmp_path / "good").read_bytes()
    path = tmp_path / "damaged"
    with zipfile.ZipFile(tmp_path / "good") as archive:
        # Beyond a member's local header, whose dates are never read.
        offsets = [info.header_offset + 200 + info.file_size // 2 for info in archive.infolist()[:-1]]
    for offset in offsets:
        changed = bytearray(content)
        changed[offset] ^= 4
        path.write_bytes(changed)
        with pytest.raises(InputError, match="damaged"):
            ensemble, _ = read_bundle(path)
            for network in ensemble.networks:
                network.read()


def test_other_files_are_input_errors(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(InputError, match="no such bundle"):
        read_bundle(path)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"file: damaged or not a bundle"):
        read_bundle(path)
    write_bundle(path, trained.ensemble(), RULE, None)
    truncate(path)
    with pytest.raises(InputError, match=r"file: damaged or not a bundle"):
        read_bundle(path)
    for text in ("[]", "{}", '{"format": "pneumo_dist-bundle", "format_version": 99}', "no json"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bundle.json", text)
        with pytest.raises(InputError, match=r"file: not a bundle"):
            read_bundle(path)
    with pytest.raises(InputError, match="damaged or not a bundle"):
        read_bundle(tmp_path)


def rewritten(path: Path, change: Callable[[dict[str, bytes]], Any], method: int = zipfile.ZIP_STORED) -> Path:
    """Rewrite a bundle with changed members, as an editor would."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def as_version_1(members: dict[str, bytes]) -> None:
    """Write bundle.json as version 1 did, whose networks had one input."""
    content = json.loads(members["bundle.json"])
    (only,) = content.pop("inputs")
    del content["image_size"], content["tta"]["scale_weights"]
    for part in content["parts"]:
        assert part.pop("input") == 0
    members["bundle.json"] = json.dumps({**content, "format_version": 1, "preprocessing": only}).encode()


def test_bundle_of_version_1_predicts_the_same(trained: Trained, tmp_path: Path) -> None:
    members = [{"experiment": "other", "top_k": 1, "image_size": 64}]
    ensemble = trained.ensemble(members=members, tta={"scales": [1, 1.5]})
    write_bundle(tmp_path / "first", ensemble, RULE_WITHOUT_GATE, SCORES)
    again, rule = read_bundle(rewritten(tmp_path / "first", as_version_1))
    assert rule == RULE_WITHOUT_GATE
    assert (again.inputs, again.image_size, again.tta) == (ensemble.inputs, 64, ensemble.tta)
    digests = [stored(trained, each, tmp_path / str(number)).digest for number, each in enumerate((ensemble, again))]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("preprocessing", None, "preprocessing"),
        ("preprocessing", {"image_size": -64}, r"preprocessing\.image_size"),
        ("preprocessing", {"in_channels": 1}, "another number of channels than its input"),
        ("preprocessing", {"std": [0, 1, 1]}, r"preprocessing\.std\.0"),
        ("parts", [], "parts"),
    ],
)
def test_content_that_no_bundle_of_version_1_has_is_refused(
    trained: Trained, tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    def change(members: dict[str, bytes]) -> None:
        as_version_1(members)
        content = json.loads(members["bundle.json"])
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
        members["bundle.json"] = json.dumps(content).encode()

    write_bundle(tmp_path / "first", trained.ensemble(members=[{"experiment": "other"}]), RULE_WITHOUT_GATE, None)
    with pytest.raises(InputError, match=rf"first: not a bundle: bundle\.json: .*{reason}.*write it again"):
        read_bundle(rewritten(tmp_path / "first", change))


def test_content_that_no_bundle_has_is_refused(trained: Trained, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["bundle.json"] = json.dumps({**json.loads(members["bundle.json"]), "eval_batch": -3}).encode()

    write_bundle(tmp_path / "edited", trained.ensemble(), RULE_WITHOUT_GATE, SCORES)
    with pytest.raises(InputError, match=r"edited: not a bundle: bundle\.json: .*eval_batch.*write it again"):
        read_bundle(rewritten(tmp_path / "edited", change))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(trained: Trained, tmp_path: Path, value: float) -> None:
    def change(members: dict[str, bytes]) -> None:
        weights = safetensors.torch.load(members["weights/000.safetensors"])
        next(each for each in weights.values() if each.is_floating_point()).view(-1)[0] = value
        members["weights/000.safetensors"] = safetensors.torch.save(weights)

    write_bundle(tmp_path / "edited", trained.ensemble(), RULE_WITHOUT_GATE, SCORES)
    ensemble, _ = read_bundle(rewritten(tmp_path / "edited", change))
    with pytest.raises(InputError, match=r"edited: weights/000\.safetensors: holds weights that are not finite"):
        predict(ensemble, trained.shards, tmp_path / "out", ALONE, PredictOptions())


def test_network_whose_output_is_not_finite_predicts_nothing(trained: Trained, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        weights = safetensors.torch.load(members["weights/000.safetensors"])
        for name in weights:
            if name.endswith("running_var"):
                weights[name] = -torch.ones_like(weights[name])  # finite, but its root is not
        members["weights/000.safetensors"] = safetensors.torch.save(weights)

    write_bundle(tmp_path / "edited", trained.ensemble(), RULE_WITHOUT_GATE, SCORES)
    ensemble, _ = read_bundle(rewritten(tmp_path / "edited", change))
    with pytest.raises(InputError, match="gives values that are not finite numbers"):
        predict(ensemble, trained.shards, tmp_path / "out", ALONE, PredictOptions())
    assert not (tmp_path / "out/manifest.json").exists()


def test_members_that_inflate_are_not_read(trained: Trained, tmp_path: Path) -> None:
    def change(members: dict[str, bytes]) -> None:
        members["weights/000.safetensors"] = bytes(50_000_000)

    write_bundle(tmp_path / "edited", trained.ensemble(), RULE_WITHOUT_GATE, SCORES)
    path = rewritten(tmp_path / "edited", change, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="its members are compressed, as no bundle's are"):
        read_bundle(path)


def test_ensemble_without_a_network_is_refused(trained: Trained) -> None:
    with pytest.raises(InputError, match="has no network"):
        replace(trained.ensemble(), networks=())


def test_pipe_is_no_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.bundle")
    with pytest.raises(InputError, match=r"x\.bundle: is a pipe, a socket or a device"):
        read_bundle(tmp_path / "x.bundle")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\x1b[2J", "<b>", "a|b", ""])
def test_names_of_networks_are_plain(trained: Trained, tmp_path: Path, name: str) -> None:
    def change(members: dict[str, bytes]) -> None:
        content = json.loads(members["bundle.json"])
        content["parts"][0]["name"] = name
        members["bundle.json"] = json.dumps(content).encode()

    write_bundle(tmp_path / "edited", trained.ensemble(), RULE_WITHOUT_GATE, SCORES)
    path = rewritten(tmp_path / "edited", change)
    with pytest.raises(InputError, match=r"parts\.0\.name"):
        read_bundle(path)
