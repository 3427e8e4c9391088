"""Bundles: one file with all that a prediction needs, from weights and preprocessing to thresholds and a model card.

A bundle is a ZIP archive of JSON, Markdown and safetensors. It contains no code, and every member has a CRC-32 that is
checked on reading.
"""

import errno
import json
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch

from pneumo_dist import __version__
from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.network.tensors import check_tensors, is_weights
from pneumo_dist.predict.bundle_content import (
    FORMAT,
    FORMAT_VERSION,
    BundleModel,
    FirstBundleModel,
    PartModel,
    from_version_1,
)
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork, map_shares
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stored import rule_content
from shards.errors import InputError
from shards.files import atomic_open
from shards.stored import KindModel, open_regular, parse_json, stored_plainly

CONTENT, CARD = "bundle.json", "MODEL_CARD.md"
# A fixed date, so that the same content gives the same bytes.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


def write_bundle(path: Path, ensemble: Ensemble, rule: Rule, scores: Mapping[str, Any] | None) -> None:
    """Write an ensemble and its rule to a file, atomically.

    Only one network is in memory at a time. The same networks give the same bytes.

    Args:
        scores: The rule's scores from thresholds.json, or None for thresholds set by hand.
    """
    with atomic_open(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        inputs = ensemble.inputs
        entries: list[dict[str, Any]] = []
        files: dict[str, str] = {}
        for network in ensemble.networks:
            trained = network.read()
            if network.name not in files:  # members with the same checkpoint share its weights
                files[network.name] = f"weights/{len(files):03d}.safetensors"
                weights = {name: value.contiguous() for name, value in trained.weights.items()}
                _add(archive, files[network.name], safetensors.torch.save(weights))
            own = {} if network.tta is None else {"tta": network.tta.model_dump(mode="json")}
            entries.append(
                {
                    "name": network.name,
                    "member": network.member,
                    "fold": network.fold,
                    "weight": network.weight,
                    "input": inputs.index(network.input),
                    "file": files[network.name],
                    "model": trained.model.model_dump(mode="json"),
                    "amp": trained.amp,
                    "lineage": list(trained.lineage),
                    **own,
                }
            )
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "name": ensemble.name,
            "image_size": ensemble.image_size,
            "inputs": [asdict(each) for each in inputs],
            "eval_batch": ensemble.eval_batch,
            "tta": ensemble.tta.model_dump(mode="json"),
            "amp": ensemble.amp,
            "rule": rule_content(rule),
            "scores": scores,
            "parts": entries,
        }
        _add(archive, CONTENT, json.dumps(content, indent=1).encode())
        keys = [entry["lineage"][-1]["keys_sha256"][:16] for entry in entries]
        _add(archive, CARD, model_card(ensemble, rule, scores, keys).encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _NO_DATE), content)


def read_bundle(path: Path) -> tuple[Ensemble, Rule]:
    """Return a bundle's ensemble and rule. Weights are read later, network by network.

    Raises InputError if the file is missing, damaged or not a bundle.
    """
    text, where, fix = _member(path, CONTENT), f"{path}: not a bundle: {CONTENT}", "write it again with 'average'"
    kind = parse_json(text, KindModel, where, fix)
    if kind.get("format") != FORMAT or kind.get("format_version") not in (1, FORMAT_VERSION):
        raise InputError(f"{path}: not a bundle of format version 1 or {FORMAT_VERSION}; {fix}")
    if kind["format_version"] == 1:
        text = from_version_1(parse_json(text, FirstBundleModel, where, fix))
    parse_json(text, BundleModel, where, fix)
    content = BundleModel.model_validate_json(text)
    inputs = [NetworkInput(**each.model_dump()) for each in content.inputs]
    ensemble = Ensemble(
        name=content.name,
        networks=tuple(
            EnsembleNetwork(
                part.name,
                part.member,
                part.fold,
                part.weight,
                inputs[part.input],
                part.model,
                partial(_network, path, part),
                part.tta,
            )
            for part in content.parts
        ),
        image_size=content.image_size,
        data=DataConfig(),
        eval_batch=content.eval_batch,
        tta=content.tta,
        amp=content.amp,
    )
    return ensemble, content.rule.rule()


def read_card(path: Path) -> str:
    """Return a bundle's model card, as Markdown. Raises InputError if the file is damaged."""
    return _member(path, CARD).decode(errors="replace")


def _network(path: Path, part: PartModel) -> TrainedNetwork:
    where, content = f"{path}: {part.file}", _member(path, part.file)
    try:
        weights = safetensors.torch.load(content)
    except Exception as error:  # the reader raises many types
        raise InputError(f"{where} is not a file of weights ({type(error).__name__}); write the bundle again") from None
    if not is_weights(weights):
        raise InputError(f"{where} holds no weights; write the bundle again")
    check_tensors(weights, where)
    lineage = [ancestor.model_dump(exclude_unset=True) for ancestor in part.lineage]
    return TrainedNetwork(part.model, weights, part.amp, lineage)


def _member(path: Path, name: str) -> bytes:
    """Return a member's bytes. Raises InputError if they are not the bytes that were written."""
    fix = "restore it or write it again"
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            if not stored_plainly(archive, os.fstat(stream.fileno()).st_size):
                raise InputError(f"{path}: its members are compressed, as no bundle's are; {fix}")
            return archive.read(name)
    except FileNotFoundError:
        raise InputError(f"{path}: no such bundle; write one with 'python -m pneumo_dist average --bundle'") from None
    except InputError:
        raise
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, ValueError, OverflowError, struct.error) as error:
        # RuntimeError for a member marked as encrypted, the others for offsets outside the file.
        raise InputError(f"{path}: damaged or not a bundle ({error}); {fix}") from None
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EISDIR):
            raise
        raise InputError(f"{path}: damaged or not a bundle ({error.strerror}); {fix}") from None


def model_card(ensemble: Ensemble, rule: Rule, scores: Mapping[str, Any] | None, trained: Sequence[str]) -> str:
    """Return what a user must know about the networks, as Markdown; `trained` has a digest of each one's films."""
    triplet = rule.triplet
    lines = [
        f"# {ensemble.name}",
        "",
        "Segments pneumothorax on frontal chest radiographs. For research; not a medical device, not for diagnosis.",
        "",
        "## Input and output",
        "",
        "A grey film, fitted into a square. Mean and standard deviation are on a scale of 0 to 1.",
        "",
        "| input | side | channels | mean | standard deviation |",
        "| --- | --- | --- | --- | --- |",
        *(_input_row(number, each) for number, each in enumerate(ensemble.inputs)),
        "",
        f"The mean of the networks' probabilities, with the views {_view_text(ensemble.tta)}, is computed at "
        f"{ensemble.image_size} px and goes back to the film's own grid.",
        "",
        _empty_text(rule)
        + f"; else its mask is everything above {triplet.bottom:.4f}"
        + (f", without parts of fewer than {rule.smallest_part} pixels." if rule.smallest_part > 1 else ".")
        + (f" A class probability of {rule.gate:.4f} or less makes it empty." if rule.gate else ""),
        "",
        "## Scores",
        "",
        *_score_lines(scores),
        "",
        "## Networks",
        "",
        "| checkpoint | share of the mean | input | training films (SHA-256 of their keys) |",
        "| --- | --- | --- | --- |",
        *(
            f"| {network.name}{_own_views(network)} | {share:.4f} | {ensemble.inputs.index(network.input)} | {keys} |"
            for network, share, keys in zip(ensemble.networks, map_shares(ensemble.networks), trained, strict=True)
        ),
    ]
    return "\n".join(lines) + "\n"


def _empty_text(rule: Rule) -> str:
    if rule.stacking is not None:
        return f"A probability of {rule.stacking.threshold:.4f} or less by the stacked gate makes a film empty"
    return f"Fewer than {rule.triplet.area} pixels above {rule.triplet.top:.4f} make a film empty"


def _input_row(number: int, each: NetworkInput) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values[: each.in_channels]) for values in (each.mean, each.std))
    return f"| {number} | {each.image_size} px | {each.in_channels} | {mean} | {std} |"


def _own_views(network: EnsembleNetwork) -> str:
    return "" if network.tta is None else f" (views {_view_text(network.tta)})"


def _view_text(tta: TtaConfig) -> str:
    """Return the scales, with their share of the mean if they are weighted, and whether there are flips."""
    weights = tta.scale_weights
    shown = [f"{scale:g}x" for scale in tta.scales]
    if weights is not None:
        shown = [f"{scale} ({weight / sum(weights):.4g})" for scale, weight in zip(shown, weights, strict=True)]
    return f"{', '.join(shown)}{' and flipped' if tta.hflip else ''}"


def _score_lines(scores: Mapping[str, Any] | None) -> list[str]:
    if scores is None:
        return ["None: the rule, or a part of it, was set by hand."]
    score, unseen, name = scores["score"], scores["dice_tuned_on_other_folds"], scores.get("rule", "triplet")
    if name != "triplet":  # the other figures are known only for the triplet
        tuned = scores["rules"][name]
        score = {**score, "dice": tuned["dice"], "positive_dice": None}
        unseen = tuned.get("dice_tuned_on_other_folds")
    lines = [
        f"Out-of-fold mean Dice {score['dice']:.4f} over {score['films']} films, {score['positives']} of them with a "
        f"pneumothorax (always empty: {score['always_empty']:.4f}). Epochs and thresholds were chosen on these films: "
        "the figure is too good."
    ]
    if score["positive_dice"] is not None:
        lines.append(f"On the films with a pneumothorax: {score['positive_dice']:.4f}.")
    if unseen is not None:
        low, high = unseen["low"], unseen["high"]
        interval = "" if low is None else f", 95 % interval {low:.4f} to {high:.4f}"
        lines.append(f"With thresholds of the other folds: {unseen['mean']:.4f}{interval}.")
    return lines
