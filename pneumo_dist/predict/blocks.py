"""Which films are predicted and stored together, by which networks.

A block is a stored tar and the unit of resuming. It is independent of the number of ranks. A span of blocks is what the
ranks work on before they send their maps to rank 0.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from pneumo_dist.data.plan import Indices, fixed_batches
from pneumo_dist.maps.labels import LearnSplit
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, shares
from shards.dataset.table import Shards
from shards.errors import InputError


@dataclass(frozen=True)
class Block:
    """Films that are stored in one tar, the networks that predict them, and a digest of all that decides the maps."""

    name: str
    films: Indices
    networks: tuple[EnsembleNetwork, ...]
    digest: str


@dataclass(frozen=True)
class Span:
    """Consecutive blocks of the same networks."""

    blocks: tuple[Block, ...]
    eval_batch: int

    @property
    def networks(self) -> tuple[EnsembleNetwork, ...]:
        return self.blocks[0].networks

    def batches(self, rank: int, world: int) -> list[Indices]:
        """Return the batches that a rank predicts. No batch reaches into another block."""
        return [rows for block in self.blocks for rows in fixed_batches(block.films, self.eval_batch)][rank::world]


def plan_blocks(
    ensemble: Ensemble, shards: Shards, split: str, folds: Sequence[int], size: int, recipe: dict[str, Any]
) -> list[Block]:
    """Return the blocks of a split, of `size` films each. `recipe` is all else that decides the maps.

    Films of `train` and `unlabelled` are those that the only fold in `folds` may learn from, and its networks predict
    them. Raises InputError for a split without films, and for a fold without a network of each member.
    """
    films = shards.indices("train" if split == "oof" else split)
    if not len(films):
        raise InputError(f"{shards.folder}: holds no {split} films; build the shards with some")
    chosen = [(films, ensemble.networks)]
    if split in get_args(LearnSplit):
        (fold,) = folds
        chosen = [(films_to_learn(shards, split, fold), _unseen(ensemble, fold))]
    elif split == "oof":
        fold_of = shards.column("fold")
        chosen = [(films[fold_of[films] == fold], _unseen(ensemble, fold)) for fold in folds or shards.folds()]
    blocks: list[Block] = []
    for rows, networks in chosen:
        for films in fixed_batches(rows, size):
            text = json.dumps({**recipe, "films": films.tolist(), "parts": _facts(networks)}, sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()
            blocks.append(Block(f"pred-{len(blocks):05d}", films, networks, digest))
    if not blocks:
        raise InputError(f"{shards.folder}: its folds {tuple(folds)} hold no films; choose others with --fold")
    return blocks


def films_to_learn(shards: Shards, split: str, fold: int) -> Indices:
    """Return the rows of the films of a split, `train` or `unlabelled`, from whose maps a fold may learn."""
    return shards.unlabelled_rows(fold) if split == "unlabelled" else shards.fold_rows(fold, always_train=True)[0]


def _facts(networks: Sequence[EnsembleNetwork]) -> list[tuple[Any, ...]]:
    """Return what decides the maps of networks. Views of their own come last, so that others keep their digest."""
    return [
        (each.name, share, asdict(each.input), *([] if each.tta is None else [each.tta.model_dump(mode="json")]))
        for each, share in zip(networks, shares(networks), strict=True)
    ]


def _unseen(ensemble: Ensemble, fold: int) -> tuple[EnsembleNetwork, ...]:
    """Return a fold's networks. Raises InputError for a member without one: the mean would be another ensemble's."""
    networks = tuple(network for network in ensemble.networks if network.fold == fold)
    members = {network.member for network in networks}
    missing = {network.member: network.name for network in ensemble.networks if network.member not in members}
    if missing or not networks:
        name = next(iter(missing.values())).split("/")[0] if missing else ensemble.name
        raise InputError(
            f"ensemble {ensemble.name}: {name} has no fold {fold}, so nothing predicts that fold's films; train it, or "
            "choose folds with --fold"
        )
    return networks


def join_blocks(blocks: Sequence[Block], eval_batch: int, most: int) -> list[Span]:
    """Return the blocks in spans of at most `most` batches, or of a single block that has more."""
    spans: list[list[Block]] = []
    batches = 0
    for block in blocks:
        count = len(fixed_batches(block.films, eval_batch))
        if spans and spans[-1][0].networks is block.networks and batches + count <= most:
            spans[-1].append(block)
            batches += count
        else:
            spans.append([block])
            batches = count
    return [Span(tuple(span), eval_batch) for span in spans]
