"""Distributed prediction: from films to p8 maps, averaged over networks and views.

Fixed batches in table order are dealt whole to the ranks, so that every map has the same bits on 1, 2 or 4 ranks. A
rank holds all networks if its memory allows, and predicts batch after batch. Otherwise the networks take turns over as
many batches as it holds. A thread encodes the maps meanwhile, and rank 0 receives and stores them. One pipeline for
each distinct input reads the films of all blocks.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pneumo_dist.data.films import Batch, FilmReader
from pneumo_dist.data.loader import eval_batches
from pneumo_dist.maps.labels import LearnSplit
from pneumo_dist.maps.store import MANIFEST, film_facts, is_whole, write_block, write_table
from pneumo_dist.maps.store_content import BlockModel
from pneumo_dist.predict.blocks import Block, Span, join_blocks, plan_blocks
from pneumo_dist.predict.encoded import EncodedFilm, encode_films, films_on_rank_0
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, distinct_inputs, map_shares
from pneumo_dist.predict.forward import LaunchedFilms, NetworkCache, predict_films
from pneumo_dist.predict.memory import Held, batch_bytes, free_bytes, held_in_memory, network_bytes
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.ranks.watchdog import PREDICTION
from shards.dataset.table import Shards
from shards.dataset.verify import dataset_digest
from shards.errors import InputError
from shards.files import atomic_write
from shards.spreadsheet import csv_text
from shards.stored import read_json

PARTS, PROBABILITIES = ".parts", "probabilities.csv"
# Batches of each rank between two messages to rank 0. The ranks wait for each other there, and the last batches of a
# span may leave some of them idle, so a few batches would cost more. A killed run predicts its last span again.
ROUNDS = 8


@dataclass(frozen=True)
class PredictOptions:
    """How to predict films: `block` films are stored together.

    The splits `train` and `unlabelled` need exactly one fold. At most `models` networks are in memory; None allows as
    many as fit.
    """

    split: str = "test"
    folds: tuple[int, ...] = ()
    block: int = 64
    models: int | None = None

    def __post_init__(self) -> None:
        if len(set(self.folds)) != len(self.folds):
            raise InputError(f"--fold {' '.join(map(str, self.folds))}: name each fold once")
        if self.block < 1:
            raise InputError(f"--block {self.block}: give at least 1")
        if self.models is not None and self.models < 1:
            raise InputError(f"--models-in-memory {self.models}: give at least 1")


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
    that did, as the digests of their training keys show; `test` films by all networks. Films of `train` and of
    `unlabelled` are predicted by the networks of one fold, which may learn from the maps: the networks have not seen
    its validation films and the holdout. Finished blocks of the same
    films and networks are reused. Raises InputError for a network that has seen films of the split, and for a split
    without films.
    """
    assert options.split not in get_args(LearnSplit) or len(options.folds) == 1, "each fold has its own maps"
    if ensemble.data.loader == "synthetic":
        raise InputError("data.loader synthetic is for measuring; predict with dali or torch (--set data.loader=dali)")
    manifest = {
        "experiment": ensemble.name,
        "split": options.split,
        **({"image_size": ensemble.image_size} if ensemble.has_maps else {"maps": False}),
        "tta": ensemble.tta.model_dump(mode="json"),
        "dataset": dataset_digest(shards),
    }
    recipe = {**manifest, "eval_batch": ensemble.eval_batch, "amp": ensemble.amp}
    blocks = plan_blocks(ensemble, shards, options.split, options.folds, options.block, recipe)
    finished = on_rank_0(ranks, lambda: [_is_finished(out, block, shards) for block in blocks])
    pending = [block for block, is_finished in zip(blocks, finished, strict=True) if not is_finished]
    on_films(sum(len(block.films) for block in blocks) - sum(len(block.films) for block in pending))
    if pending:
        held = _held(ensemble, pending, ranks, options)
        spans = join_blocks(pending, ensemble.eval_batch, ranks.world * max(held.batches, ROUNDS))
        unseen = None if options.split == "test" else shards
        cache = NetworkCache(ensemble, ranks, held.networks, unseen)
        films = {each: _films(ensemble, each, shards, ranks, spans) for each in ensemble.inputs}
        _predict_spans(spans, films, cache, held.batches, _Store(out, shards), on_films)
    if ranks.is_main:
        if options.split in get_args(LearnSplit):
            networks = blocks[0].networks
            manifest |= {"fold": options.folds[0], "lineage": _ancestors(networks)}
        else:
            networks = ensemble.networks
        parts = [
            {"name": network.name, "fold": network.fold, "weight": share}
            for network, share in zip(networks, map_shares(networks), strict=True)
        ]
        rows = [row for block in blocks for row in json.loads(_record(out, block).read_text())["rows"]]
        assert len(rows) == sum(len(block.films) for block in blocks), "a film is missing"
        members = [member.model_dump(mode="json") for member in ensemble.members]
        known = {"members": members} if members and options.split == "oof" else {}
        write_table(out, rows, {**manifest, "parts": parts, **known})
        _write_probabilities(out, rows, any(network.model.is_classifier for network in networks))
        names = {f"{block.name}.tar" for block in blocks}
        for stale in [*out.glob("pred-*.tar"), *(out / PARTS).glob("pred-*.json")]:
            if f"{stale.stem}.tar" not in names:
                stale.unlink()
    ranks.gather_bytes(b"")  # no rank returns before the table exists


def _ancestors(networks: Sequence[EnsembleNetwork]) -> list[dict[str, Any]]:
    """Return the lineages of some networks, each stage once."""
    found: list[dict[str, Any]] = []
    for network in networks:
        found += [stage for stage in network.read().lineage if stage not in found]
    return found


def _write_probabilities(out: Path, rows: Sequence[Mapping[str, object]], has_classifier: bool) -> None:
    """Write the class probabilities of films as a table, if a classifier took part, in the order of the keys."""
    if not has_classifier:
        (out / PROBABILITIES).unlink(missing_ok=True)
        return
    ordered = sorted(rows, key=lambda row: str(row["key"]))
    cells = [(row["image_id"], "" if row["fold"] is None else row["fold"], row["class_probability"]) for row in ordered]
    atomic_write(out / PROBABILITIES, csv_text([("image_id", "fold", "probability"), *cells]))


def _held(ensemble: Ensemble, blocks: Sequence[Block], ranks: Ranks, options: PredictOptions) -> Held:
    """Return what every rank holds: what fits on the rank with the least memory."""
    largest = max((network_bytes(block.networks) for block in blocks), key=sum)
    least = -(-options.block // (ensemble.eval_batch * ranks.world))
    free = min(int(each) for each in ranks.gather_array(np.array(free_bytes(ranks))))
    return held_in_memory(free, largest, batch_bytes(ensemble), least, options.models)


def _films(
    ensemble: Ensemble, network_input: NetworkInput, shards: Shards, ranks: Ranks, spans: Sequence[Span]
) -> Iterator[Batch]:
    """Return this rank's batches of all spans whose networks take an input, from one pipeline."""
    chosen = (span for span in spans if network_input in distinct_inputs(span.networks))
    batches = (rows for span in chosen for rows in span.batches(ranks.rank, ranks.world))
    reader = FilmReader(shards, ensemble.input_spec(network_input, ranks), with_mask=False)
    return eval_batches(reader, batches, ensemble.eval_batch)


def _predict_spans(
    spans: Sequence[Span],
    films: Mapping[NetworkInput, Iterator[Batch]],
    cache: NetworkCache,
    together: int,
    store: "_Store",
    on_films: Callable[[int], None],
) -> None:
    """Predict spans of blocks, `together` batches at a time. Rank 0 stores them while the next span is predicted."""
    ranks = cache.ranks
    stored: Future[None] | None = None
    with ThreadPoolExecutor(2, "maps") as pool:
        for span in spans:
            batches = span.batches(ranks.rank, ranks.world)
            encoded: list[Future[list[EncodedFilm]]] = []
            own = 0
            for start in range(0, len(batches), together):
                ranks.beat(PREDICTION)
                predicted = predict_films(batches[start : start + together], films, span.networks, cache)
                encoded.append(pool.submit(_encoded, predicted))
                on_films(len(predicted.rows))
                own += len(predicted.rows)
            found = films_on_rank_0([film for each in encoded for film in each.result()], ranks)
            if stored is not None:
                stored.result()
            if ranks.is_main:
                stored = pool.submit(store.write, span, found)
            on_films(sum(len(block.films) for block in span.blocks) - own)  # those of the other ranks
        if stored is not None:
            stored.result()


def _encoded(films: LaunchedFilms) -> list[EncodedFilm]:
    """Wait for the device, which computes the next batch meanwhile, and encode the maps."""
    return encode_films(films.on_host())


@dataclass(frozen=True)
class _Store:
    """Where rank 0 stores the blocks of some shards."""

    out: Path
    shards: Shards

    def write(self, span: Span, films: Mapping[int, EncodedFilm]) -> None:
        """Write the blocks of a span, one after the other."""
        (self.out / MANIFEST).unlink(missing_ok=True)  # the predictions in this folder are being replaced
        for block in span.blocks:
            content = [(self._facts(films[row]), films[row].content) for row in block.films.tolist()]
            rows = write_block(self.out / f"{block.name}.tar", content)
            atomic_write(_record(self.out, block), json.dumps({"digest": block.digest, "rows": rows}))

    def _facts(self, film: EncodedFilm) -> dict[str, object]:
        has_class = not np.isnan(film.class_probability)
        return {**film_facts(self.shards, film.row), "class_probability": film.class_probability if has_class else None}


def _record(out: Path, block: Block) -> Path:
    return out / PARTS / f"{block.name}.json"


def _is_finished(out: Path, block: Block, shards: Shards) -> bool:
    """Return whether an undamaged block of the same films and networks exists."""
    try:
        content = read_json(_record(out, block), BlockModel, "it is predicted again")
    except (FileNotFoundError, InputError):
        return False
    rows, facts = content["rows"], [film_facts(shards, int(row)) for row in block.films]
    has_same_films = [{name: row[name] for name in facts[0]} for row in rows] == facts
    return content["digest"] == block.digest and has_same_films and is_whole(out, rows)
