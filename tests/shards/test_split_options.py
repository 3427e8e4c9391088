"""The options of a split are fields of the build's options, with the same defaults."""

from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from shards.build.options import BuildOptions
from shards.split_options import split_options


def values(*arguments: str) -> dict[str, Any]:
    received: dict[str, Any] = {}
    command = click.command()(split_options(lambda **options: received.update(options)))
    assert CliRunner().invoke(command, arguments).exit_code == 0
    return received


def test_defaults_are_those_of_the_build() -> None:
    received = values()
    assert (received.pop("max_rejects"), received.pop("patient_salt_file")) == (0, None)
    assert received == {name: getattr(BuildOptions(), name) for name in received}
    assert set(received) == {"folds", "holdout", "seed", "groups_csv", "folds_csv", "duplicate_distance"}


def test_files_are_paths() -> None:
    received = values("--groups", "g.csv", "--folds-csv", "f.csv", "--patient-salt-file", "salt")
    assert [received[name] for name in ("groups_csv", "folds_csv", "patient_salt_file")] == [
        *(Path("g.csv"), Path("f.csv"), Path("salt"))
    ]
