"""The command line `pneumo-dist`, or `python -m pneumo_dist`. Only segment does not run under torchrun."""

import os
import warnings
from typing import NoReturn

import click

from pneumo_dist import __version__
from pneumo_dist.cli.config import config, init_config
from pneumo_dist.cli.doctor import doctor
from pneumo_dist.cli.masks import report, submit, tune
from pneumo_dist.cli.predict import average, predict, segment
from pneumo_dist.cli.status import status
from pneumo_dist.cli.train import fetch_weights, show_batch_command, train
from pneumo_dist.ranks.ending import end_after
from pneumo_dist.ranks.environment import is_first
from shards import console
from shards.errors import InputError
from shards.files import raise_open_files


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pneumo_dist", message="%(prog)s %(version)s")
def app() -> None:
    """Distributed training and inference for pneumothorax segmentation on chest radiographs."""
    raise_open_files()


for command in (
    train,
    fetch_weights,
    show_batch_command,
    predict,
    average,
    tune,
    submit,
    report,
    segment,
    status,
    doctor,
    config,
    init_config,
):
    app.add_command(command)


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
