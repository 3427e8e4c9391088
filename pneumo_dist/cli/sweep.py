"""The command sweep, which searches config keys."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.cli.options import CONFIG_FILE, CPU, FOLDER, OVERRIDES, RUNS
from pneumo_dist.config.load import LoadedConfig, load_config
from pneumo_dist.data.servers import start_server
from pneumo_dist.ranks.environment import launched_rank
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.sweep.journal import RecordModel
    from pneumo_dist.sweep.trials import EndsEarly, HowEnded, Sweep, TrainFold

EXIT_STOPPED = 75


@click.command(short_help="Search config keys: many short trainings, one table and plot.")
@click.option("--config", "config_path", type=CONFIG_FILE, help="YAML file of the experiment, or a shipped one's name.")
@OVERRIDES
@click.option("--space", "space_path", type=FOLDER, help="YAML file with the config keys to vary and their values.")
@click.option("--shards", "shards_path", type=FOLDER, help="Folder that 'shards build' made.")
@RUNS
@CPU
@click.option("--trials", type=click.IntRange(1), help="Number of trials of the sweep, over all processes.")
@click.option("--grid", is_flag=True, help="Try all combinations of the space's values instead of sampling.")
@click.option("--fold", "single", type=int, multiple=True, help="Fold to validate on; may be repeated.  [default: 0]")
@click.option("--folds", "listed", metavar="LIST", help="Folds of each trial: 0,2 or all.")
@click.option("--prune", type=click.IntRange(1), metavar="EPOCHS", help="Stop a trial below the median, after EPOCHS.")
@click.option("--name", help="Name of the sweep and its folder in RUNS.  [default: CONFIG-SPACE]")
@click.option("--show", is_flag=True, help="Only print the table of a sweep and write its CSV and plot.")
def sweep(  # noqa: PLR0913  # one parameter per option
    config_path: Path | None,
    overrides: tuple[str, ...],
    space_path: Path | None,
    shards_path: Path | None,
    runs: Path,
    cpu: bool,
    trials: int | None,
    grid: bool,
    single: tuple[int, ...],
    listed: str | None,
    prune: int | None,
    name: str | None,
    show: bool,
) -> int:
    """Search config keys. Each trial trains one fold, or several, as an experiment of its own in RUNS.

    Any number of processes may run the same command at once. Run it again to resume.
    """
    if launched_rank(os.environ) is not None:
        raise InputError("sweep trains each trial in one process; start it without torchrun, once for each GPU")
    if name is None and config_path is not None and space_path is not None:
        name = f"{load_config(config_path, overrides).experiment.name}-{space_path.stem}"
    if show:
        if name is None:
            raise click.UsageError("--show needs --name, or --config and --space")
        _need_optuna()
        return _show(runs / name, str(shards_path or "SHARDS"))
    if config_path is None or space_path is None or shards_path is None or not (trials or grid):
        raise click.UsageError("give --config, --space, --shards, and --trials or --grid")
    assert name is not None
    start_server(load_config(config_path, overrides).experiment.data.loader)  # before the imports that take seconds
    _need_optuna()

    from pneumo_dist.cli.train import chosen_folds
    from pneumo_dist.sweep.journal import begin
    from pneumo_dist.sweep.space import check_space, load_space
    from pneumo_dist.sweep.trials import Sweep, run_trials

    space = load_space(space_path)
    check_space(space, config_path, overrides, grid)
    folds = chosen_folds(single or ((0,) if listed is None else ()), listed, shards_path)
    most = trials or len(space.combinations())
    search = Sweep(name, config_path, overrides, space, folds, most, grid, prune, runs)
    search.check_name()
    trainer = _trainer(search, shards_path, cpu)
    if not run_trials(search, begin(search.folder, _record(search, shards_path)), trainer):
        console.say("stopped by a signal; run the same command to resume")
        return EXIT_STOPPED
    return _show(search.folder, str(shards_path))


def _need_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError("sweep needs optuna; run: pip install 'pneumo_dist[sweep]'") from None


def _record(search: "Sweep", shards: Path) -> "RecordModel":
    from pneumo_dist.sweep.journal import FORMAT, FORMAT_VERSION, RecordModel

    return RecordModel(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=search.name,
        config=search.digest,
        space=search.space.plain(),
        grid=search.grid,
        folds=list(search.folds),
        shards=Shards(shards).manifest["table_sha256"],
        seed=load_config(search.config, search.overrides).experiment.seed,
        prune=search.prune,
    )


def _trainer(search: "Sweep", shards_path: Path, cpu: bool) -> "TrainFold":
    """Return the function that trains a fold of a trial. Raises InputErrors if the config itself cannot be trained."""
    import torch

    from pneumo_dist.cli.dry_run import Training, check_training, warn
    from pneumo_dist.cli.train import train_one
    from pneumo_dist.ranks.precision import configure
    from pneumo_dist.ranks.ranks import process_group
    from pneumo_dist.ranks.stop import Preempted
    from pneumo_dist.ranks.watchdog import Limits
    from pneumo_dist.sweep.trials import Failed
    from pneumo_dist.train.stage import Diverged

    def training_of(config: LoadedConfig, folds: tuple[int, ...]) -> Training:
        return Training(config, shards_path, search.runs, folds, cpu, False, 1, 1)

    base = load_config(search.config, search.overrides)
    warn(check_training(training_of(base, search.folds)))
    shards = Shards(shards_path)

    def train(config: LoadedConfig, fold: int, ends_early: "EndsEarly") -> "HowEnded":
        training = training_of(config, (fold,))
        _forget_trials(base.experiment.runtime.compile)
        try:
            check_training(training)
        except InputError as error:
            check_training(training_of(base, (fold,)))  # raises if the parameters are not to blame
            raise Failed(str(error)) from None
        runtime = config.experiment.runtime
        try:
            with process_group(cpu, Limits(runtime.start_minutes, runtime.watchdog_minutes)) as ranks:
                configure(runtime)
                train_one(training, shards, fold, ranks, ends_early=ends_early)
        except Preempted:
            return "stopped"
        except Diverged as error:
            raise Failed(str(error)) from None
        except torch.OutOfMemoryError:
            raise Failed("out of GPU memory") from None
        return "trained"

    return train


def _forget_trials(compiles: bool) -> None:
    """Free what the trials before have left in this process, so that the next is trained as in a new one."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # the log of a stage has its peak
    if compiles:
        torch.compiler.reset()  # after some networks torch would give up compiling


def _show(folder: Path, shards: str) -> int:
    """Print the table of a sweep, and write it as CSV and plot into the sweep's folder."""
    from pneumo_dist.sweep.journal import Journal, read_record
    from pneumo_dist.sweep.plot import draw_sweep
    from pneumo_dist.sweep.space import Parameter
    from pneumo_dist.sweep.table import as_csv, lines, rows_of, summary
    from shards.files import atomic_write

    record = read_record(folder)
    parameters = {key: Parameter.model_validate(each) for key, each in record["space"].items()}
    rows = rows_of(Journal(folder, record["name"]).trials(), record["name"], list(parameters))
    for path, content in (
        (folder / "trials.csv", as_csv(rows, list(parameters))),
        (folder / "trials.png", draw_sweep(rows, parameters)),
    ):
        atomic_write(path, content)
    print("\n".join(lines(rows, list(parameters))))
    print("\n".join(["", *summary(rows, record, folder.parent, shards)]))
    print(f"table and plot: {folder / 'trials.csv'}, {folder / 'trials.png'}")
    return console.EXIT_DONE
