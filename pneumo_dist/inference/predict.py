"""Distributed prediction: films into p8 maps, averaged over checkpoints, flips and folds.

Films stand in blocks; a block is the unit of resuming. Within it, fixed batches in table order are dealt whole to the
ranks, so that every map is the same bits on 1, 2 or 4 ranks.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumo_dist.checkpoint import CheckpointFile, load_checkpoint, top_files, weights_of
from pneumo_dist.config import Experiment, StageConfig
from pneumo_dist.data.batch import Input, Source
from pneumo_dist.data.loader import eval_batches
from pneumo_dist.data.plan import Indices, fixed_batches
from pneumo_dist.distributed import Ranks
from pneumo_dist.inference.postprocess import Map, to_p8
from pneumo_dist.inference.store import MANIFEST, film_facts, write_block, write_table
from pneumo_dist.lineage import check_unseen
from pneumo_dist.models import build_model, split_outputs
from pneumo_dist.precision import Resolved, autocast
from pneumo_dist.stages import best_repetition
from shards.errors import InputError
from shards.files import atomic_write
from shards.table import Shards
from shards.verify import dataset_digest

SPLITS = ("oof", "holdout", "test")
PARTS = ".parts"


@dataclass(frozen=True)
class PredictOptions:
    """What decides the maps besides films and checkpoints."""

    split: str = "test"
    folds: tuple[int, ...] = ()
    stage: str | None = None
    top_k: int | None = None
    hflip: bool = True
    block: int = 64


@dataclass(frozen=True)
class Member:
    """One checkpoint of one fold."""

    fold: int
    file: CheckpointFile


@dataclass(frozen=True)
class _Block:
    name: str
    films: Indices
    members: tuple[Member, ...]


def predict(
    experiment: Experiment,
    shards: Shards,
    run: Path,
    ranks: Ranks,
    options: PredictOptions,
    on_films: Callable[[int], None] | None = None,
) -> Path:
    """Predict a split with an experiment's folds; return the folder of the predictions.

    `oof` films are seen only by checkpoints that never trained on them, which is checked by the digests of training
    keys; `holdout` and `test` films by all. A finished block of the same films and checkpoints is not made again.
    Raises InputError for a fold without checkpoints and a split without films.
    """
    if experiment.data.loader == "synthetic":
        raise InputError("data.loader synthetic is for measuring; predict with dali or host (--set data.loader=dali)")
    stage = experiment.stage(options.stage) if options.stage else experiment.stages[-1]
    folds = options.folds or tuple(shards.folds())
    members = [
        Member(fold, file)
        for fold in folds
        for file in top_files(_checkpoints(run / f"fold{fold}", stage), options.top_k or stage.top_k)
    ]
    blocks = _blocks(shards, options, folds, members)
    out = run / ("oof" if options.split == "oof" else options.split) / "predictions"
    predictor = _Predictor(experiment, stage, shards, ranks, options)
    manifest = {
        "experiment": experiment.name,
        "split": options.split,
        "stage": stage.name,
        "image_size": stage.image_size,
        "hflip": options.hflip,
        "members": [f"fold{m.fold}/{m.file.path.name}" for m in members],
        "dataset": dataset_digest(shards),
    }
    rows: list[dict[str, Any]] = []
    for block in blocks:
        rows += _run_block(block, predictor, out, {**manifest, "films": block.films.tolist()}, ranks)
        if on_films:
            on_films(len(block.films))
    if ranks.is_main:
        names = {row["tar"] for row in rows}
        write_table(out, rows, manifest)
        for stale in [*out.glob("pred-*.tar"), *(out / PARTS).glob("pred-*.json")]:
            if f"{stale.stem}.tar" not in names:
                stale.unlink()
    ranks.gather_bytes(b"")  # no rank returns before the table stands
    return out


def _checkpoints(folder: Path, stage: StageConfig) -> Path:
    return folder / best_repetition(stage, folder) / "checkpoints"


def _blocks(shards: Shards, options: PredictOptions, folds: Sequence[int], members: Sequence[Member]) -> list[_Block]:
    if options.block < 1:
        raise InputError(f"--block {options.block}: give at least 1")
    if options.split == "oof":
        films, fold_of = shards.indices("train"), shards.column("fold")
        parts = [(films[fold_of[films] == fold], [m for m in members if m.fold == fold]) for fold in folds]
    else:
        parts = [(shards.indices(options.split), list(members))]
    blocks = [
        (films[start : start + options.block], tuple(chosen))
        for films, chosen in parts
        for start in range(0, len(films), options.block)
    ]
    if not blocks:
        raise InputError(f"{shards.folder}: holds no {options.split} films; build the shards with some")
    return [_Block(f"pred-{number:05d}", films, chosen) for number, (films, chosen) in enumerate(blocks)]


def _run_block(
    block: _Block, predictor: "_Predictor", out: Path, recipe: dict[str, Any], ranks: Ranks
) -> list[dict[str, Any]]:
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    part = out / PARTS / f"{block.name}.json"
    done = ranks.broadcast_json(_finished_rows(part, out / f"{block.name}.tar", digest) if ranks.is_main else None)
    if done is not None:
        return list(done)
    maps = predictor(block)
    if not ranks.is_main:
        return []
    (out / MANIFEST).unlink(missing_ok=True)  # what stands here is being replaced
    films = [(film_facts(predictor.shards, index), p8) for index, p8 in maps]
    rows = write_block(out / f"{block.name}.tar", films)
    atomic_write(part, json.dumps({"digest": digest, "rows": rows}))
    return rows


def _finished_rows(part: Path, tar: Path, digest: str) -> list[dict[str, Any]] | None:
    try:
        content = json.loads(part.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content["rows"] if content["digest"] == digest and tar.exists() else None


class _Predictor:
    """Runs the members over a block; each rank keeps the models that it has loaded."""

    def __init__(
        self, experiment: Experiment, stage: StageConfig, shards: Shards, ranks: Ranks, options: PredictOptions
    ) -> None:
        self.experiment, self.stage, self.shards, self.ranks, self.options = experiment, stage, shards, ranks, options
        self._models: dict[Path, tuple[torch.nn.Module, Resolved]] = {}

    def __call__(self, block: _Block) -> list[tuple[int, Map]]:
        """Return (table row, p8 map) of every film of the block in table order, on every rank."""
        batches = fixed_batches(block.films, self.stage.eval_batch)[self.ranks.rank :: self.ranks.world]
        spec = Input(
            self.stage.image_size, self.experiment.model.in_channels, self.experiment.data, self.ranks.device_id
        )
        rows: list[int] = []
        maps: list[Map] = []
        for batch in eval_batches(Source(self.shards, spec, with_mask=False), batches, self.stage.eval_batch):
            mean = self._average(batch.images.to(self.ranks.device, torch.float32, non_blocking=True), block.members)
            rows += batch.indices.tolist()
            maps += list(to_p8(mean)[: len(batch.indices)])
        size = self.stage.image_size
        numbers = np.concatenate(self.ranks.gather_array(np.array(rows, np.int64)))
        stacks = self.ranks.gather_array(np.stack(maps) if maps else np.zeros((0, size, size), np.uint8))
        everything = [p8 for stack in stacks for p8 in stack]
        return sorted(zip(numbers.tolist(), everything, strict=True), key=lambda film: film[0])

    @torch.inference_mode()
    def _average(self, images: torch.Tensor, members: Sequence[Member]) -> torch.Tensor:
        total = torch.zeros(images.shape[0], 1, *images.shape[2:], device=images.device)
        for member in members:
            model, amp = self._model(member)
            with autocast(amp, self.ranks.device):
                logits = split_outputs(model(images))[0]
                flipped = split_outputs(model(images.flip(-1)))[0].flip(-1) if self.options.hflip else None
            total += torch.sigmoid(logits.float())
            if flipped is not None:
                total += torch.sigmoid(flipped.float())
        return total / (len(members) * (2 if self.options.hflip else 1))

    def _model(self, member: Member) -> tuple[torch.nn.Module, Resolved]:
        path = member.file.path
        if path not in self._models:
            state = load_checkpoint(path)
            if self.options.split == "oof":
                check_unseen(state, path, self.shards, member.fold)
            model = build_model(self.experiment.model, pretrained=False)
            try:
                model.load_state_dict(weights_of(state))
            except RuntimeError:
                raise InputError(
                    f"{path}: does not fit the model of this config; use the one it was trained with"
                ) from None
            self._models[path] = model.to(self.ranks.device).eval(), state["amp"]
        return self._models[path]
