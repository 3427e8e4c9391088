"""Finds the networks that predict and average use, and averages weights if the ensemble asks for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.cli.dry_run import warnings_or_raise
from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, alone, load_either
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor.prediction import check_sizes
from pneumo_dist.predict.average import averaged_checkpoint
from pneumo_dist.predict.ensemble import Ensemble, TrainedFold, resolve
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.ranks.watchdog import Limits
from shards.dataset.table import Shards


@dataclass(frozen=True)
class NetworkOptions:
    """Options that select the networks of an experiment or an ensemble.

    `stage`, `top_k` and `hflip` only apply to an experiment; an ensemble's config sets them itself.
    """

    config_path: Path
    overrides: tuple[str, ...]
    stage: str | None = None
    top_k: int | None = None
    hflip: bool = True


def find_networks(
    loaded: tuple[EnsembleConfig, Experiment | None],
    folds: Sequence[int],
    runs: Path,
    shards: Shards | None,
    ranks: Ranks,
) -> Ensemble:
    """Return the networks of what `load_ensemble` returned, with averaged weights if the ensemble asks for them."""
    ensemble, experiment = loaded

    def averaged(member: MemberConfig, trained_fold: TrainedFold) -> Path:
        # Members that average different checkpoints must not overwrite each other's result.
        kind = f"{trained_fold.stage.name}-{member.checkpoints}-{member.top_k or trained_fold.stage.top_k}"
        folder = runs / ensemble.name / "averaged" / member.experiment / f"fold{trained_fold.number}" / kind
        return averaged_checkpoint(member, trained_fold, folder, shards, ranks)

    folds = folds or (shards.folds() if shards else [])
    networks = resolve(ensemble, runs, folds, ranks, averaged, experiment)
    on_rank_0(ranks, lambda: warnings_or_raise(check_sizes(networks, ensemble, runs, folds, experiment)))
    return networks


def load_ensemble(options: NetworkOptions) -> tuple[EnsembleConfig, Experiment | None]:
    """Load the config as an ensemble. An experiment becomes an ensemble of its folds and is returned too."""
    config = load_either(options.config_path, options.overrides)
    if isinstance(config, Experiment):
        return alone(config, options.stage, options.top_k, options.hflip), config
    return config, None


def limits_of(experiment: Experiment | None) -> Limits | None:
    """Return the minutes without progress after which a prediction ends: an experiment's own, or the usual ones."""
    if experiment is None:
        return None
    return Limits(experiment.runtime.start_minutes, experiment.runtime.watchdog_minutes)
