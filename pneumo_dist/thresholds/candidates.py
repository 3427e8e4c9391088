"""Candidates of a selection: stored out-of-fold predictions of the same films, each with the members that made them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig
from pneumo_dist.maps.store import TABLE, Predictions, open_predictions
from shards.errors import InputError

# Facts of a film that all candidates must agree on.
_FACTS = (
    *("key", "group", "fold", "rle", "label_height", "label_width"),
    *("pad_top", "pad_bottom", "pad_left", "pad_right", "stored"),
)


@dataclass(frozen=True)
class Candidate:
    """Out-of-fold predictions, and the members that predict the same as an ensemble of their own."""

    name: str
    predictions: Predictions
    members: tuple[MemberConfig, ...]


def open_candidates(folders: Mapping[str, Path]) -> list[Candidate]:
    """Open the out-of-fold predictions of run folders, by their names, in the order of the names.

    Raises InputError, naming the folder and the fix, for predictions that no ensemble can mix: of other films, folds or
    labels than the first one's, of other shards, at another size, incomplete, or of checkpoints that are gone.
    """
    if len(folders) < 2:
        raise InputError(
            f"{', '.join(map(str, folders.values()))}: one candidate leaves nothing to select; give more runs"
        )
    candidates = [_open(name, folders[name]) for name in sorted(folders)]
    for candidate in candidates[1:]:
        _check_alike(candidates[0].predictions, candidate.predictions)
    parents = {folder.resolve().parent: folder for folder in folders.values()}
    if len(parents) > 1:
        one, other, *_ = parents.values()
        raise InputError(f"{one} and {other}: are in two folders; the members of an ensemble have one --runs")
    return candidates


def _open(name: str, folder: Path) -> Candidate:
    predictions = open_predictions(folder / "oof" / "predictions")
    manifest, where = predictions.manifest, predictions.folder
    if manifest.get("split") != "oof":
        raise InputError(f"{where}: are not out-of-fold predictions; predict with --split oof")
    if not manifest.get("members") or not manifest.get("parts") or not manifest.get("dataset"):
        raise InputError(f"{where}: do not name their members; predict again, which keeps the finished films")
    members = tuple(MemberConfig.model_validate(member) for member in manifest["members"])
    for fold in sorted(set(predictions.folds.tolist())):
        for member in members:
            parts = [part for part in manifest["parts"] if _is_of(part, member, fold)]
            if fold < 0 or not parts:
                raise InputError(f"{where}: films of fold {fold} have no network of {member.experiment}; predict again")
            if member.average == "predictions":
                _check_there(folder.resolve().parent, parts, where)
    return Candidate(name, predictions, members)


def _is_of(part: Mapping[str, Any], member: MemberConfig, fold: int) -> bool:
    return part.get("fold") == fold and str(part["name"]).startswith(f"{member.experiment}/fold{fold}/")


def _check_there(runs: Path, parts: Sequence[Mapping[str, Any]], where: Path) -> None:
    """Raise InputError if a checkpoint is gone: the selected ensemble would have other networks than were scored."""
    for part in parts:
        experiment, fold, file = str(part["name"]).split("/", 2)
        if not any(path.name == file for path in (runs / experiment / fold).glob("*/checkpoints/step-*.pt")):
            raise InputError(f"{where}: were predicted by {part['name']}, which is no longer in {runs}; predict again")


def _check_alike(first: Predictions, other: Predictions) -> None:
    """Raise InputError unless two candidates have the same films, folds, labels, shards and size."""
    for key, meaning in (("dataset", "other shards"), ("image_size", "maps of another size")):
        mine, its = first.manifest.get(key), other.manifest.get(key)
        if mine != its:
            values = f" ({its} px, not {mine} px)" if key == "image_size" else ""
            fix = "set image_size in the config of the ensemble and predict again" if values else "predict again"
            raise InputError(f"{other.folder}: have {meaning} than {first.folder}{values}; {fix}")
    if len(first) != len(other):
        incomplete, whole = sorted((first, other), key=len)
        raise InputError(
            f"{incomplete.folder}: hold {len(incomplete)} films, and {whole.folder} {len(whole)}; predict all folds"
        )
    for mine, its in zip(first.rows, other.rows, strict=True):
        different = [fact for fact in _FACTS if mine[fact] != its[fact]]
        if different:
            raise InputError(
                f"{other.folder / TABLE}: film {its['key']} has another {different[0]} than in {first.folder}; predict "
                "both with the same shards"
            )


def ensemble_of(candidates: Sequence[Candidate], picks: Sequence[int], name: str) -> EnsembleConfig:
    """Return the ensemble of candidates that were picked so many times; a member's weight is its share of the picks.

    Of a candidate with a classifier, the segmenters have these shares: maps were selected.
    """
    members: list[MemberConfig] = []
    for candidate, count in zip(candidates, picks, strict=True):
        whole = sum(member.weight for member in candidate.members if _makes_maps(candidate, member))
        if count:
            members += [
                member.model_copy(update={"weight": count * (member.weight / whole)}) for member in candidate.members
            ]
    views = [member.tta for member in members]
    size = candidates[0].predictions.manifest.get("image_size")
    if all(view == views[0] for view in views) and views[0] is not None:
        members = [member.model_copy(update={"tta": None}) for member in members]
        return EnsembleConfig(name=name, members=tuple(members), tta=views[0], image_size=size)
    return EnsembleConfig(name=name, members=tuple(members), image_size=size)


def _makes_maps(candidate: Candidate, member: MemberConfig) -> bool:
    """Return whether a member's networks have a share of the maps, which classifiers have not."""
    parts = candidate.predictions.manifest["parts"]
    shares = [part.get("weight") for part in parts if str(part["name"]).startswith(f"{member.experiment}/")]
    return not shares or any(share != 0 for share in shares)


def as_yaml(ensemble: EnsembleConfig, comments: Sequence[str]) -> str:
    """Return an ensemble as YAML that the other commands load, without the keys at their defaults."""
    content = ensemble.model_dump(mode="json", exclude_defaults=True)
    lines = [f"# {comment}" for comment in comments]
    return "\n".join([*lines, yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)])
