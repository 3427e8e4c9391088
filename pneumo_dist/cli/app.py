"""The command line `pneumo-dist`, or `python -m pneumo_dist`. Only segment and sweep do not run under torchrun."""

import os
import warnings
from collections import UserDict
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import NoReturn, cast

import click

from pneumo_dist import __version__
from pneumo_dist.ranks.ending import end_after
from pneumo_dist.ranks.environment import is_first
from shards import console
from shards.errors import InputError
from shards.files import raise_open_files


class _Commands(UserDict[str, click.Command]):
    """The commands by name. A command's module is imported when the command is used, so that short ones start quickly.

    `places` maps names to `module.function`, in this folder.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        super().__init__()
        self._places = dict(places)

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.data:
            module, function = self._places[name].split(".")
            self.data[name] = cast(click.Command, getattr(import_module(f"pneumo_dist.cli.{module}"), function))
        return self.data[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


COMMANDS = _Commands(
    {
        "train": "train.train",
        "sweep": "sweep.sweep",
        "fetch-weights": "train.fetch_weights",
        "show-batch": "train.show_batch_command",
        "predict": "predict.predict",
        "average": "predict.average",
        "tune": "masks.tune",
        "submit": "masks.submit",
        "select": "select.select",
        "report": "masks.report",
        "compare": "compare.compare",
        "segment": "segment.segment",
        "export": "export.export",
        "status": "status.status",
        "prune": "prune.prune",
        "doctor": "doctor.doctor",
        "config": "config.config",
        "init-config": "config.init_config",
    }
)


@click.group(commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pneumo_dist", message="%(prog)s %(version)s")
def app() -> None:
    """Distributed training and inference for pneumothorax segmentation on chest radiographs."""
    raise_open_files()


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a user warning as one line, on the first rank only."""
    try:
        prints = is_first(os.environ)
    except InputError:  # the command reports a contradictory environment itself
        prints = True
    if prints and issubclass(category, UserWarning):
        console.warn(str(message))


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    warnings.showwarning = _show_warning
    end_after(lambda: console.run(app, console.program("pneumo-dist", "pneumo_dist")))
