"""Configs that come with the package, found by name."""

from pathlib import Path

import pytest

from pneumo_dist.config import shipped

CONFIGS = Path(__file__).parents[3] / "configs"


def test_experiments_and_ensembles_of_a_checkout_are_found_by_name() -> None:
    configs = shipped.shipped_configs()
    assert configs["seunet"] == CONFIGS / "seunet.yaml"
    assert configs["heavy"] == CONFIGS / "ensembles/heavy.yaml"
    assert list(configs) == sorted(configs) and len(configs) == len(list(CONFIGS.rglob("*.yaml")))


def test_copies_of_an_installed_package_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs/seunet.yaml", "pneumo_dist/configs/ensembles/heavy.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "pneumo_dist")
    assert shipped.shipped_configs() == {"heavy": tmp_path / "pneumo_dist/configs/ensembles/heavy.yaml"}
