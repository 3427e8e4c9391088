"""The networks that predict and average take: of an experiment or an ensemble, whose weights may be averages."""

from pathlib import Path

from pneumo_dist.cli.dry_run import told
from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, alone, load_either
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor.prediction import check_sizes
from pneumo_dist.predict.average import averaged_checkpoint
from pneumo_dist.predict.ensemble import Ensemble, TrainedFold, resolve
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from shards.dataset.table import Shards
from shards.errors import InputError


def resolved(
    config_path: Path | None,
    overrides: tuple[str, ...],
    runs: Path | None,
    shards: Shards | None,
    ranks: Ranks,
    folds: tuple[int, ...],
    of_experiment: tuple[str | None, int | None, bool] = (None, None, True),
) -> Ensemble:
    """Return the networks of an experiment or an ensemble, with averaged weights made where they are asked for."""
    assert config_path is not None
    if runs is None:
        raise InputError("give --runs, the folder of all runs")
    ensemble, own = ensemble_of(config_path, overrides, of_experiment)

    def averaged(member: MemberConfig, trained_fold: TrainedFold) -> Path:
        # Members that differ in what they average must not replace each other's checkpoint.
        kind = f"{trained_fold.stage.name}-{member.checkpoints}-{member.top_k or trained_fold.stage.top_k}"
        folder = runs / ensemble.name / "averaged" / member.experiment / f"fold{trained_fold.number}" / kind
        return averaged_checkpoint(member, trained_fold, folder, shards, ranks)

    chosen = folds or (shards.folds() if shards else [])
    found = resolve(ensemble, runs, chosen, ranks, averaged, own)
    on_rank_0(ranks, lambda: told(check_sizes(found, ensemble, runs, chosen, own)))
    return found


def ensemble_of(
    config_path: Path, overrides: tuple[str, ...], of_experiment: tuple[str | None, int | None, bool]
) -> tuple[EnsembleConfig, Experiment | None]:
    """Return the ensemble that a config asks for, and the experiment where it is one's."""
    config = load_either(config_path, overrides)
    return (alone(config, *of_experiment), config) if isinstance(config, Experiment) else (config, None)
