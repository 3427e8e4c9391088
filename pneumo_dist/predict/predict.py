"""Distributed prediction: from films to p8 maps, averaged over networks and views.

Films are grouped in blocks; a block is the unit of resuming. Within a block, fixed batches in table order are dealt
whole to the ranks, so that every map has the same bits on 1, 2 or 4 ranks. The networks take turns over a block, so
that few of them are in memory at a time. One pipeline for each distinct input reads the films of all blocks.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pneumo_dist.data.films import Batch, FilmReader
from pneumo_dist.data.loader import eval_batches
from pneumo_dist.data.plan import Indices, fixed_batches
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, distinct_inputs, shares
from pneumo_dist.predict.forward import NetworkCache, PredictedFilms, gather_films, predict_films
from pneumo_dist.predict.store import MANIFEST, film_facts, is_whole, write_block, write_table
from pneumo_dist.predict.store_content import BlockModel
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.ranks.watchdog import PREDICTION
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
    recipe = {**manifest, "eval_batch": ensemble.eval_batch, "amp": ensemble.amp}
    blocks = _blocks(ensemble, shards, options, recipe)
    finished = on_rank_0(ranks, lambda: [_is_finished(out, block, shards) for block in blocks])
    cache = NetworkCache(ensemble, ranks, options.models, None if options.split == "test" else shards)
    pending = [block for block, is_finished in zip(blocks, finished, strict=True) if not is_finished]
    films = {each: _films(ensemble, each, shards, ranks, pending) for each in ensemble.inputs}
    rows: list[dict[str, Any]] = []
    for block, is_finished in zip(blocks, finished, strict=True):
        if not is_finished:
            ranks.beat(PREDICTION)
            batches = _batches_of_rank(block, ensemble, ranks)
            predicted = gather_films(predict_films(batches, films, block.networks, cache), ranks)
            if ranks.is_main:
                _write(out, block, predicted, shards)
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


def _facts(networks: Sequence[EnsembleNetwork]) -> list[tuple[str, float, dict[str, Any]]]:
    return [(each.name, share, asdict(each.input)) for each, share in zip(networks, shares(networks), strict=True)]


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


def _films(
    ensemble: Ensemble, network_input: NetworkInput, shards: Shards, ranks: Ranks, blocks: Sequence[_Block]
) -> Iterator[Batch]:
    """Return this rank's batches of all blocks whose networks take an input, from one pipeline."""
    chosen = (block for block in blocks if network_input in distinct_inputs(block.networks))
    batches = (rows for block in chosen for rows in _batches_of_rank(block, ensemble, ranks))
    reader = FilmReader(shards, ensemble.input_spec(network_input, ranks), with_mask=False)
    return eval_batches(reader, batches, ensemble.eval_batch)


def _write(out: Path, block: _Block, films: PredictedFilms, shards: Shards) -> None:
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
