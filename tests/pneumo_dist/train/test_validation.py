"""A validation, compared with a film-by-film loop on the label grid; its overlays; a stop in the middle."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from threaded_ranks import on_ranks

from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import EvalLoader, eval_loader
from pneumo_dist.data.plan import split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import StopRequested
from pneumo_dist.scoring.masks import apply_triplet, label_map
from pneumo_dist.train import validation
from pneumo_dist.train.validation import Validation, ValidationFilms, validate
from shards.dataset.table import Shards

ALONE = Ranks.alone()
STAGE = StageConfig.model_validate({"name": "main", "image_size": 64, "eval_batch": 4})


def model_of() -> torch.nn.Module:
    """A network that marks about half of the pixels."""
    torch.manual_seed(1)
    config = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 6, 8)}}
    model = build_model(ModelConfig.model_validate(config), pretrained=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model


def loader_of(films: Shards, rank: int = 0, world: int = 1) -> EvalLoader:
    rows = split_fold(films, 0, always_train=False).validation
    return eval_loader(films, rows, STAGE, InputSpec(64, 1, DataConfig(loader="torch")), rank, world, with_mask=True)


@pytest.mark.parametrize("on_device", [False, True])
def test_validation_equals_a_loop_over_films(films: Shards, monkeypatch: pytest.MonkeyPatch, on_device: bool) -> None:
    monkeypatch.setattr(validation, "_counts_on", lambda _: on_device)
    model, loader = model_of(), loader_of(films)
    rows = split_fold(films, 0, always_train=False).validation
    dices: dict[int, float] = {}
    losses, pixels = [], np.zeros((2, 256), np.int64)
    for batch in loader:
        count = len(batch.indices)
        with torch.no_grad():
            logits = model(batch.images)[:count]
        losses.append((float(combo_loss(logits, batch.masks[:count], STAGE.loss)["loss"]), count))
        for place, index in enumerate(batch.indices.tolist()):
            p8 = torch.sigmoid(logits[place, 0]).mul(255).round().to(torch.uint8).numpy()
            truth = films.label(index).astype(bool)
            found = cv2.resize(p8, truth.shape[::-1], interpolation=cv2.INTER_LINEAR_EXACT)
            called = found > 0.5 * 255
            total = called.sum() + truth.sum()
            dices[index] = 2 * (called & truth).sum() / total if total else 1.0
            for kind, part in enumerate((found.reshape(-1), found[truth])):
                pixels[kind] += np.bincount(part, minlength=256)
    assert sorted(dices) == rows.tolist() and len(losses) == 2 and losses[0][1] != losses[1][1]
    shown = frozenset(rows[:2].tolist())
    result = validate(model, ValidationFilms(films, loader, 2, shown), STAGE.loss, ALONE, "float32")
    positives = [index for index in rows.tolist() if films.label(index).any()]
    assert result.plain.dice == pytest.approx(np.mean(list(dices.values())))
    assert result.plain.positive_dice == pytest.approx(np.mean([dices[index] for index in positives])) != 0
    assert (result.plain.films, result.plain.positives) == (len(rows), len(positives))
    assert result.best.dice >= result.plain.dice and 0 < len(positives) < len(rows)
    assert result.loss == pytest.approx(sum(loss * count for loss, count in losses) / len(rows))
    np.testing.assert_array_equal(result.pixels, pixels)
    assert result.figures()["score"] == result.best.dice and result.figures()["validation_loss"] == result.loss
    keys = films.column("key")
    fixed, worst = result.overlays[:2], result.overlays[2:]
    assert [overlay.name for overlay in fixed] == [f"fixed/{keys[index]}" for index in sorted(shown)]
    lowest = sorted(positives, key=lambda index: (dices[index], index))[:2]
    assert [overlay.name for overlay in worst] == ["worst/1", "worst/2"]
    for overlay, index in zip(worst, lowest, strict=True):
        truth = cv2.resize(films.label(index), (64, 64), interpolation=cv2.INTER_NEAREST) > 0
        assert overlay.dice == pytest.approx(dices[index]) and overlay.key == keys[index]
        mask = apply_triplet(label_map(overlay.p8, films.grid(index)), result.triplet)
        label = films.label(index)
        assert overlay.best_dice == pytest.approx(2 * int((mask & label).sum()) / int(mask.sum() + label.sum()))
        assert overlay.called == mask.any()
        assert (overlay.label > 0).sum() == pytest.approx(truth.sum(), rel=0.1, abs=8)


@pytest.mark.parametrize("after", [0, 1])
def test_stopped_validation_returns_nothing_and_the_next_is_complete(films: Shards, after: int) -> None:
    model, loader = model_of(), loader_of(films)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise StopRequested

    def validated(loader: EvalLoader, check: Callable[[], None] = lambda: None) -> Validation:
        rounds = ValidationFilms(films, loader, 2, frozenset())
        return validate(model, rounds, STAGE.loss, ALONE, "float32", check)

    with pytest.raises(StopRequested):
        validated(loader, check)
    again, whole = validated(loader), validated(loader_of(films))
    assert again.figures() == whole.figures() and again.overlays == ()
    np.testing.assert_array_equal(again.pixels, whole.pixels)


def same(one: Validation, other: Validation) -> bool:
    """Whether two validations are equal to the bit, apart from their overlays."""
    facts = [(each.triplet, each.best, each.plain, each.loss, each.pixels.tolist()) for each in (one, other)]
    return facts[0] == facts[1]


def test_histograms_of_the_device_give_the_same_result_to_the_bit(
    films: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, shown = model_of(), frozenset(split_fold(films, 0, always_train=False).validation[:2].tolist())
    results = []
    for on_device in (False, True):
        monkeypatch.setattr(validation, "_counts_on", lambda _, on_device=on_device: on_device)
        results.append(
            validate(model, ValidationFilms(films, loader_of(films), 2, shown), STAGE.loss, ALONE, "float32")
        )
    assert same(*results)
    assert repr(results[0].overlays) == repr(results[1].overlays) and len(results[0].overlays) == 4


def test_next_batch_is_launched_before_a_batch_is_scored(films: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = STAGE.model_copy(update={"eval_batch": 2})
    rows = split_fold(films, 0, always_train=False).validation
    loader = eval_loader(films, rows, stage, InputSpec(64, 1, DataConfig(loader="torch")), 0, 1, with_mask=True)
    events: list[str] = []
    predict, score = validation._predict, validation._FilmScores.add

    def noted_predict(*arguments: Any) -> Any:
        events.append("launch")
        return predict(*arguments)

    def noted_score(scores: Any, predicted: Any) -> None:
        events.append("score")
        score(scores, predicted)

    monkeypatch.setattr(validation, "_predict", noted_predict)
    monkeypatch.setattr(validation._FilmScores, "add", noted_score)
    validate(model_of(), ValidationFilms(films, loader, 4, frozenset()), stage.loss, ALONE, "float32")
    assert events == ["launch", "launch", "score", "launch", "score", "score"], "the fourth round has no batch"


def test_only_rank_0_receives_pictures_and_only_those_that_are_shown(films: Shards) -> None:
    rows = split_fold(films, 0, always_train=False).validation
    shown = frozenset(rows[films.column("has_mask")[rows].astype(bool)][:1].tolist())
    alone = validate(model_of(), ValidationFilms(films, loader_of(films), 2, shown), STAGE.loss, ALONE, "float32")
    parts = [(model_of(), ValidationFilms(films, loader_of(films, rank, 2), 1, shown)) for rank in range(2)]

    def work(ranks: Ranks) -> Validation:
        return validate(*parts[ranks.rank], STAGE.loss, ranks, "float32")

    (first, second), exchange = on_ranks(2, work)
    assert same(first, alone) and same(second, alone)
    assert repr(first.overlays) == repr(alone.overlays) and second.overlays == ()
    assert [overlay.name.split("/")[0] for overlay in first.overlays] == ["fixed", "worst"]
    few = 2_000 + len(rows) * 513 * 4 + 255 * 5 * 8
    assert exchange.received[1] < few
    assert exchange.received[0] < few + 3 * 64 * 64, "at most one film of the other rank is shown"
