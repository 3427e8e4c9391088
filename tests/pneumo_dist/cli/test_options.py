"""Checks of option values."""

from pathlib import Path

import click
import pytest
from integration.conftest import ROOT

from pneumo_dist.cli.options import CONFIG_FILE, check_folder
from pneumo_dist.cli.train import train
from pneumo_dist.config.shipped import shipped_configs
from shards.errors import InputError


def test_existing_and_new_folders_are_accepted(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "new" / "nested"):
        check_folder(path)
    assert list(tmp_path.iterdir()) == []


def test_file_at_the_path_or_above_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "folder", file / "folder" / "nested"):
        with pytest.raises(InputError) as caught:
            check_folder(path)
        assert str(caught.value) == f"--out {path}: {file} is a file; give a folder"


def config_path(value: str) -> Path:
    return CONFIG_FILE.convert(value, None, None)


def test_config_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder is no config
    assert config_path("demo").read_bytes() == (ROOT / "configs" / "demo.yaml").read_bytes()
    assert config_path("heavy").read_bytes() == (ROOT / "configs" / "ensembles" / "heavy.yaml").read_bytes()


def test_file_comes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").touch()
    assert config_path("demo") == Path("demo")


@pytest.mark.parametrize("value", ["seunet.yaml", "absent/seunet", "./absent.yml", "absent/demo.yaml"])
def test_path_of_a_file_stays_a_path(value: str) -> None:
    assert config_path(value) == Path(value)


@pytest.mark.parametrize(
    ("value", "fix"),
    [("sunet", "did you mean seunet?"), ("7", f"give a YAML file or one of: {', '.join(shipped_configs())}")],
)
def test_unknown_name_is_refused_with_a_near_one(value: str, fix: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        config_path(value)
    assert caught.value.message == f"{value}: no such config; {fix}"


def test_shell_completes_names_and_else_paths() -> None:
    def completed(incomplete: str) -> list[str]:
        context = click.Context(train)
        return [item.value for item in CONFIG_FILE.shell_complete(context, train.params[0], incomplete)]

    assert completed("recipe_a") == [name for name in shipped_configs() if name.startswith("recipe_a")]
    assert len(completed("recipe_a")) == 4
    assert completed("my/conf") == ["my/conf"]  # the shell completes this as a path
