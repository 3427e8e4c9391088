"""Shards and pretrained weights: intact ones, and each kind of damage with a fix."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from damage import flip_bit, truncate
from only_finding import only

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.inputs import check_shards, check_weights, is_cached, train_tars
from pneumo_dist.network.build import encoder_state
from shards.dataset.manifest import MANIFEST
from shards.dataset.table import TABLE, Shards


@pytest.fixture
def copy(films: Shards, tmp_path: Path) -> Path:
    """A copy of the films that a test may damage."""
    return Path(shutil.copytree(films.folder, tmp_path / "shards"))


def open_tars() -> int:
    return sum(os.path.realpath(link).endswith(".tar") for link in Path("/proc/self/fd").iterdir())


def test_intact_shards(films: Shards) -> None:
    before = open_tars()
    only(check_shards(films.folder), Status.OK, "12 films in 3 tars of the right size; 3 sampled films are intact")
    assert open_tars() == before
    assert train_tars(films.folder) == 3
    assert train_tars(films.folder / "missing") == 0


def test_tar_that_is_missing_or_short(copy: Path) -> None:
    (copy / "train-00001.tar").unlink()
    only(check_shards(copy), Status.ERROR, "train-00001.tar: missing", "python -m shards verify")
    truncate(copy / "train-00002.tar")
    words = ("train-00001.tar: missing (1 more)", f"'python -m shards verify {copy}'")
    only(check_shards(copy), Status.ERROR, *words)
    (copy / "train-00001.tar").symlink_to(copy / "train-00000.tar")
    shutil.copy(copy / "train-00000.tar", copy / "train-00002.tar")
    only(check_shards(copy), Status.ERROR, "bytes, but the manifest says")


def test_bit_flipped_in_a_film_that_is_read(copy: Path, films: Shards) -> None:
    row = int((films.column("shard") == "train-00001.tar").argmax())
    tar, offset = copy / "train-00001.tar", int(films.column("image_offset")[row])
    flip_bit(tar, offset + 40)
    key = str(films.column("key")[row])
    only(
        check_shards(copy),
        Status.ERROR,
        "train-00001.tar",
        f"image of {key} does not match its CRC32",
        "restore it from a copy",
    )


def test_table_that_differs_from_the_manifest(copy: Path) -> None:
    table = (copy / TABLE).read_bytes()
    manifest = (copy / MANIFEST).read_text()
    digest = hashlib.sha256(table).hexdigest()
    (copy / MANIFEST).write_text(manifest.replace(digest, "0" * 64))
    only(check_shards(copy), Status.ERROR, f"{TABLE}: differs from the manifest's digest", "rebuild it")
    flip_bit(copy / TABLE)
    only(check_shards(copy), Status.ERROR, TABLE, "rebuild it")


def test_folder_without_shards(tmp_path: Path) -> None:
    only(check_shards(tmp_path), Status.ERROR, "no manifest.json", "rebuild it")
    only(check_shards(tmp_path / "missing"), Status.ERROR, "no such shards folder", "rebuild it")


def model_of(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate(values)


def test_weights_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    content = encoder_state(model_of(encoder="resnet18"))
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    values = {"encoder": "resnet18", "encoder_weights_file": str(path), "encoder_weights_sha256": digest}
    for channels in (1, 3):
        model = model_of(**values, in_channels=channels)
        only(check_weights(model, is_cached, {}), Status.OK, "with the config's SHA-256")
    other = model_of(**{**values, "encoder": "resnet34"})
    words = [
        "holds no weights of resnet34: of its 216 tensors",
        "missing (layer1.2.conv1.weight",
        "give a file of this",
    ]
    only(check_weights(other, is_cached, {}), Status.ERROR, *words)
    path.write_bytes(b"others")
    words = ["weights.pt: its SHA-256 is", "python -m pneumo_dist fetch-weights"]
    only(check_weights(model_of(**values), is_cached, {}), Status.ERROR, *words)
    path.unlink()
    only(check_weights(model_of(**values), is_cached, {}), Status.ERROR, "No such file", "fetch-weights")


def test_weights_by_name() -> None:
    named = model_of(encoder="resnet34", encoder_weights="imagenet")
    only(check_weights(named, lambda model: True, {}), Status.OK, "imagenet weights of resnet34, in the hub's cache")
    words = ["imagenet weights of resnet34 are not in the hub's cache", "python -m pneumo_dist fetch-weights"]
    only(check_weights(named, lambda model: False, {}), Status.WARNING, *words)
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        words = [f"{variable} forbids downloading them", "unset it", "python -m pneumo_dist fetch-weights"]
        only(check_weights(named, lambda model: False, {variable: "true"}), Status.ERROR, *words)
        only(check_weights(named, lambda model: False, {variable: "0"}), Status.WARNING)
        only(check_weights(named, lambda model: True, {variable: "1"}), Status.OK)
    unknown = model_of(encoder="resnet34", encoder_weights="moon")
    only(
        check_weights(unknown, is_cached, {}),
        Status.ERROR,
        "there are no moon weights of resnet34",
        "a name that the library knows",
    )
    assert check_weights(model_of(), is_cached, {}) == []


def test_the_hubs_cache_is_searched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants
    from segmentation_models_pytorch.encoders import encoders

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    named = model_of(encoder="resnet34", encoder_weights="imagenet")
    assert not is_cached(named)
    assert not is_cached(model_of(encoder="timm-regnetx_002", encoder_weights="imagenet"))
    settings = encoders["resnet34"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert is_cached(named)


def test_timms_encoders_are_searched_by_timms_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    named = model_of(encoder="tu-resnet18", encoder_weights="imagenet")
    assert not is_cached(named)
    import timm

    config = timm.models.get_pretrained_cfg("resnet18")
    assert config is not None and config.hf_hub_id is not None
    folder = tmp_path / f"models--{config.hf_hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("a" * 40) / "model.safetensors").write_bytes(b"weights")
    assert is_cached(named)
