"""Distributed prediction: from films to p8 maps, averaged over networks and views.

Films are grouped in blocks; a block is the unit of resuming. Within a block, fixed batches in table order are dealt
whole to the ranks, so that every map has the same bits on 1, 2 or 4 ranks. The networks take turns over a block, so
that few of them are in memory at a time. One pipeline reads the films of all blocks.
"""

import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.data.films import Batch, FilmReader
from pneumo_dist.data.loader import eval_batches
from pneumo_dist.data.plan import Indices, fixed_batches
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, shares
from pneumo_dist.predict.store import MANIFEST, film_facts, is_whole, write_block, write_table
from pneumo_dist.predict.store_content import BlockModel
from pneumo_dist.predict.tta import mean_view
from pneumo_dist.ranks.precision import Resolved, resolve_amp
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.ranks.watchdog import PREDICTION
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.scoring.masks import to_p8
from shards.dataset.table import Shards
from shards.dataset.verify import dataset_digest
from shards.errors import InputError
from shards.files import atomic_write
from shards.stored import read_json

PARTS = ".parts"


@dataclass(frozen=True)
class PredictOptions:
    """How to predict films: `block` films are stored together, and at most `models` networks are in memory."""

    split: str = "test"
    folds: tuple[int, ...] = ()
    block: int = 64
    models: int = 4

    def __post_init__(self) -> None:
        if len(set(self.folds)) != len(self.folds):
            raise InputError(f"--fold {' '.join(map(str, self.folds))}: name each fold once")
        if self.block < 1:
            raise InputError(f"--block {self.block}: give at least 1")
        if self.models < 1:
            raise InputError(f"--models-in-memory {self.models}: give at least 1")


@dataclass(frozen=True)
class _Block:
    name: str
    films: Indices
    networks: tuple[EnsembleNetwork, ...]
    digest: str


def predict(
    ensemble: Ensemble,
    shards: Shards,
    out: Path,
    ranks: Ranks,
    options: PredictOptions,
    on_films: Callable[[int], None] = lambda count: None,
) -> None:
    """Predict the films of a split into the folder `out`.

    Films of `oof` and `holdout` are predicted only by networks that neither trained on them nor descend from a network
    that did, as the digests of their training keys show; `test` films by all networks. Finished blocks of the same
    films and networks are reused. Raises InputError for a network that has seen films of the split, and for a split
    without films.
    """
    if ensemble.data.loader == "synthetic":
        raise InputError("data.loader synthetic is for measuring; predict with dali or torch (--set data.loader=dali)")
    manifest = {
        "experiment": ensemble.name,
        "split": options.split,
        "image_size": ensemble.image_size,
        "tta": ensemble.tta.model_dump(mode="json"),
        "dataset": dataset_digest(shards),
    }
    recipe = {**manifest, "eval_batch": ensemble.eval_batch, "amp": ensemble.amp, "channels": ensemble.in_channels}
    recipe |= {"mean": ensemble.data.mean, "std": ensemble.data.std}
    blocks = _blocks(ensemble, shards, options, recipe)
    finished = on_rank_0(ranks, lambda: [_is_finished(out, block, shards) for block in blocks])
    cache = _NetworkCache(ensemble, shards, ranks, options)
    pending = [block for block, is_finished in zip(blocks, finished, strict=True) if not is_finished]
    batches = _films(ensemble, shards, ranks, pending)
    rows: list[dict[str, Any]] = []
    for block, is_finished in zip(blocks, finished, strict=True):
        if not is_finished:
            ranks.beat(PREDICTION)
            count = len(_batches_of_rank(block, ensemble, ranks))
            films = _gather(_predict_block(list(itertools.islice(batches, count)), block.networks, cache), ranks)
            if ranks.is_main:
                _write(out, block, films, shards)
        if ranks.is_main:
            rows += json.loads((out / PARTS / f"{block.name}.json").read_text())["rows"]
        on_films(len(block.films))
    if ranks.is_main:
        parts = [
            {"name": network.name, "fold": network.fold, "weight": share}
            for network, share in zip(ensemble.networks, shares(ensemble.networks), strict=True)
        ]
        assert len(rows) == sum(len(block.films) for block in blocks), "a film is missing"
        write_table(out, rows, {**manifest, "parts": parts})
        names = {row["tar"] for row in rows}
        for stale in [*out.glob("pred-*.tar"), *(out / PARTS).glob("pred-*.json")]:
            if f"{stale.stem}.tar" not in names:
                stale.unlink()
    ranks.gather_bytes(b"")  # no rank returns before the table exists


def _blocks(ensemble: Ensemble, shards: Shards, options: PredictOptions, recipe: dict[str, Any]) -> list[_Block]:
    films = shards.indices("train" if options.split == "oof" else options.split)
    if not len(films):
        raise InputError(f"{shards.folder}: holds no {options.split} films; build the shards with some")
    chosen = [(films, ensemble.networks)]
    if options.split == "oof":
        fold_of = shards.column("fold")
        folds = options.folds or tuple(shards.folds())
        chosen = [(films[fold_of[films] == fold], _unseen(ensemble, fold)) for fold in folds]
    blocks: list[_Block] = []
    for rows, networks in chosen:
        for start in range(0, len(rows), options.block):
            films = rows[start : start + options.block]
            text = json.dumps({**recipe, "films": films.tolist(), "parts": _facts(networks)}, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()
            blocks.append(_Block(f"pred-{len(blocks):05d}", films, networks, digest))
    if not blocks:
        raise InputError(f"{shards.folder}: its folds {options.folds} hold no films; choose others with --fold")
    return blocks


def _facts(networks: Sequence[EnsembleNetwork]) -> list[tuple[str, float]]:
    return [(network.name, share) for network, share in zip(networks, shares(networks), strict=True)]


def _unseen(ensemble: Ensemble, fold: int) -> tuple[EnsembleNetwork, ...]:
    """Return a fold's networks. Raises InputError for a member without one: the mean would be another ensemble's."""
    networks = tuple(network for network in ensemble.networks if network.fold == fold)
    members = {network.member for network in networks}
    missing = {network.member: network.name for network in ensemble.networks if network.member not in members}
    if missing or not networks:
        name = next(iter(missing.values())).split("/")[0] if missing else ensemble.name
        raise InputError(
            f"ensemble {ensemble.name}: {name} has no fold {fold}, so its films have no out-of-fold prediction; train "
            "it, or choose folds with --fold"
        )
    return networks


def _batches_of_rank(block: _Block, ensemble: Ensemble, ranks: Ranks) -> list[Indices]:
    """Return the batches of a block that this rank predicts."""
    return fixed_batches(block.films, ensemble.eval_batch)[ranks.rank :: ranks.world]


def _films(ensemble: Ensemble, shards: Shards, ranks: Ranks, blocks: Sequence[_Block]) -> Iterator[Batch]:
    """Return this rank's batches of all blocks, from one pipeline."""
    batches = (rows for block in blocks for rows in _batches_of_rank(block, ensemble, ranks))
    return eval_batches(FilmReader(shards, ensemble.input_spec(ranks), with_mask=False), batches, ensemble.eval_batch)


@dataclass(frozen=True)
class _Films:
    """Predicted films: table rows int64 (n,), maps uint8 (n, size, size), class probabilities float64 (n,) or nan."""

    rows: Indices
    maps: npt.NDArray[np.uint8]
    classes: npt.NDArray[np.float64]


def _predict_block(batches: Sequence[Batch], networks: Sequence[EnsembleNetwork], cache: "_NetworkCache") -> _Films:
    """Predict this rank's films of a block; the networks take turns, each over all of the films."""
    device, size = cache.ranks.device, cache.ensemble.image_size
    images = [batch.images.to(device, torch.float32, non_blocking=True) for batch in batches]
    sums = [torch.zeros(len(each), 1, size, size, device=device) for each in images]
    classes = [torch.zeros(len(each), device=device) for each in images]
    heads = 0.0
    for network, share in zip(networks, shares(networks), strict=True):
        if not images:
            break
        model, amp = cache(network)
        for number, each in enumerate(images):
            cache.ranks.beat(PREDICTION)
            maps, head = mean_view(model, each, cache.ensemble.tta, amp)
            sums[number] += share * maps
            if head is not None:
                classes[number] += share * head
        heads += share if head is not None else 0.0
    _check_finite([*sums, *classes], networks)
    counts = [len(batch.indices) for batch in batches]
    return _Films(
        np.concatenate([np.zeros(0, np.int64), *(batch.indices for batch in batches)]),
        np.concatenate(
            [np.zeros((0, size, size), np.uint8), *(to_p8(s)[:n] for s, n in zip(sums, counts, strict=True))]
        ),
        np.concatenate(
            [
                np.zeros(0),
                *(
                    (c[:n].double() / heads if heads else c[:n] * np.nan).cpu().numpy()
                    for c, n in zip(classes, counts, strict=True)
                ),
            ]
        ),
    )


def _check_finite(sums: Sequence[torch.Tensor], networks: Sequence[EnsembleNetwork]) -> None:
    """Raise InputError for values that are not finite: they would be rounded to 'no pneumothorax'."""
    if not all(bool(torch.isfinite(each).all()) for each in sums):
        more = f" or one of {len(networks) - 1} more" if len(networks) > 1 else ""
        raise InputError(
            f"{networks[0].name}{more}: gives values that are not finite numbers; its weights are damaged or too large "
            "for its precision (amp: float32)"
        )


def _gather(mine: _Films, ranks: Ranks) -> _Films:
    """Return the films of all ranks in table order."""
    rows, maps, classes = (
        np.concatenate(ranks.gather_array(values)) for values in (mine.rows, mine.maps, mine.classes)
    )
    order = np.argsort(rows, kind="stable")
    return _Films(rows[order], maps[order], classes[order])


def _write(out: Path, block: _Block, films: _Films, shards: Shards) -> None:
    (out / MANIFEST).unlink(missing_ok=True)  # the predictions in this folder are being replaced
    facts = [
        {**film_facts(shards, int(row)), "class_probability": None if np.isnan(value) else float(value)}
        for row, value in zip(films.rows, films.classes, strict=True)
    ]
    rows = write_block(out / f"{block.name}.tar", list(zip(facts, films.maps, strict=True)))
    atomic_write(out / PARTS / f"{block.name}.json", json.dumps({"digest": block.digest, "rows": rows}))


def _is_finished(out: Path, block: _Block, shards: Shards) -> bool:
    """Return whether an undamaged block of the same films and networks exists."""
    try:
        content = read_json(out / PARTS / f"{block.name}.json", BlockModel, "it is predicted again")
    except (FileNotFoundError, InputError):
        return False
    rows, facts = content["rows"], [film_facts(shards, int(row)) for row in block.films]
    has_same_films = [{name: row[name] for name in facts[0]} for row in rows] == facts
    return content["digest"] == block.digest and has_same_films and is_whole(out, rows)


class _NetworkCache:
    """The networks on this rank's device; the least recently used makes room for the next."""

    def __init__(self, ensemble: Ensemble, shards: Shards, ranks: Ranks, options: PredictOptions) -> None:
        self.ensemble, self.ranks = ensemble, ranks
        self._shards, self._options = shards, options
        self._held: OrderedDict[str, tuple[torch.nn.Module, Resolved]] = OrderedDict()

    def __call__(self, network: EnsembleNetwork) -> tuple[torch.nn.Module, Resolved]:
        """Return a network on the device and its autocast type. Raises InputError if it has seen films of the split."""
        if network.name not in self._held:
            while len(self._held) >= self._options.models:
                self._held.popitem(last=False)
            self._held[network.name] = self._load(network)
        self._held.move_to_end(network.name)
        return self._held[network.name]

    def _load(self, network: EnsembleNetwork) -> tuple[torch.nn.Module, Resolved]:
        trained, device = network.read(), self.ranks.device
        if self._options.split != "test":
            check_unseen(trained.lineage, network.name, self._shards, network.fold)
        amp = trained.amp if self.ensemble.amp is None else resolve_amp(self.ensemble.amp, device)
        if amp == "fp16" and device.type == "cpu":
            amp = "float32"  # CPUs do not compute in float16
        return trained.build(network.name).to(device), amp
