"""Streams of every loader: the same bits for any number of ranks and from any starting point."""

import hashlib
import itertools
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from images import decode

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data import loader
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.loader import EvalLoader, eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, FoldSplit
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample

STRONG = AugmentConfig.model_validate(
    {
        "hflip": 0.5,
        "shift_scale_rotate": {"p": 0.7},
        "distortion": {"p": 0.6, "elastic": {"pixels": "input"}, "grid_open": True},
        "random_resized_crop": {"p": 0.3},
        "clahe": {"p": 0.3},
        "tone": {"p": 0.6, "brightness_by": "mean", "gamma_exponent": "1/g"},
        "noise": {"p": 0.5},
    }
)
LOADERS = ["dali", "torch"]


@pytest.fixture(autouse=True)
def _has_dali(request: pytest.FixtureRequest) -> None:
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("name") == "dali":
        pytest.importorskip("nvidia.dali")


def input_spec_of(name: str, size: int = 64, threads: int = 1, prefetch: int = 2) -> InputSpec:
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    data = DataConfig.model_validate({**plain, "loader": name, "threads": threads, "prefetch": prefetch})
    return InputSpec(size, 1, data)


def plan_of(shards: Shards, world: int = 1, **stage: object) -> EpochPlan:
    """Return a plan that trains on all films, in three epochs of three steps (for twelve films)."""
    values = {"name": "main", "global_batch": 4, "micro_batch": 2, "epochs": 3, "image_size": 64, "augment": STRONG}
    config = StageConfig.model_validate({**values, **stage})
    rows = np.arange(len(shards))
    positive = shards.column("has_mask").astype(bool)
    areas = shards.column("mask_area")[positive]
    return EpochPlan(FoldSplit(rows, rows[positive], rows[~positive], rows[:0], areas), config, 11, world)


def places(plan: EpochPlan, rank: int = 0, epoch: int = 0, step: int = 0) -> list[tuple[int, int, list[int]]]:
    return [(at, position, rows.tolist()) for at, position, rows in plan.micro_batches(rank, epoch, step)]


def digests(
    shards: Shards,
    plan: EpochPlan,
    input_spec: InputSpec,
    rank: int,
    start: tuple[int, int] = (0, 0),
    end: int | None = None,
) -> dict[tuple[int, int, str], str]:
    """Return (epoch, step, key) -> SHA-256 of image and mask of a stream, or of its first `end` batches."""
    actual: dict[tuple[int, int, str], str] = {}
    keys = shards.column("key")
    listed = places(plan, rank, *start)[:end]
    stream = itertools.islice(train_batches(shards, plan, input_spec, rank, *start), end)
    for (epoch, step, rows), batch in zip(listed, stream, strict=True):
        assert batch.indices.tolist() == rows
        for row, image, mask in zip(rows, batch.images, batch.masks, strict=True):
            content = image.numpy().tobytes() + mask.numpy().tobytes()
            assert (epoch, step, keys[row]) not in actual
            actual[epoch, step, keys[row]] = hashlib.sha256(content).hexdigest()
    return actual


# -- one stream for any number of ranks and restarts


@pytest.mark.parametrize("name", LOADERS)
def test_three_epochs_have_the_same_bits_on_1_2_and_4_ranks(films: Shards, name: str) -> None:
    actual = []
    for world, micro in ((1, 2), (2, 2), (4, 1)):
        plan = plan_of(films, world, micro_batch=micro)
        parts = [digests(films, plan, input_spec_of(name), rank) for rank in range(world)]
        assert sum(map(len, parts)) == 3 * 12
        actual.append({film: digest for part in parts for film, digest in part.items()})
    assert actual[0] == actual[1] == actual[2]
    assert len(set(actual[0].values())) == 36


@pytest.mark.parametrize("name", LOADERS)
def test_three_epochs_have_the_same_bits_after_a_restart_in_the_middle(films: Shards, name: str) -> None:
    for world in (1, 2):
        plan = plan_of(films, world, micro_batch=1)
        for rank in range(world):
            whole = digests(films, plan, input_spec_of(name), rank)
            before = digests(films, plan, input_spec_of(name), rank, end=4 * plan.accumulation)
            after = digests(films, plan, input_spec_of(name, threads=2, prefetch=3), rank, start=(1, 1))
            assert before and after and not before.keys() & after.keys()
            assert {**before, **after} == whole


def test_each_epoch_and_each_seed_augments_a_film_differently(films: Shards) -> None:
    pytest.importorskip("nvidia.dali")
    plan = plan_of(films)
    actual = digests(films, plan, input_spec_of("dali"), 0)
    for key in films.column("key"):
        assert len({digest for (_, _, film), digest in actual.items() if film == key}) == 3
    other = EpochPlan(plan.split, plan.stage, plan.seed + 1, 1)
    again = digests(films, other, input_spec_of("dali"), 0)
    assert len(again) == len(actual)
    assert not set(again.values()) & set(actual.values())


# -- starting anywhere


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 0), (2, 2)])
@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("name", LOADERS)
def test_stream_from_the_middle_is_the_tail_of_the_whole(
    films: Shards, name: str, prefetch: int, epoch: int, step: int
) -> None:
    plan, input_spec = plan_of(films, global_batch=4, micro_batch=4), input_spec_of(name, prefetch=prefetch)
    whole = list(train_batches(films, plan, input_spec_of(name), 0, 0, 0))
    tail = list(train_batches(films, plan, input_spec, 0, epoch, step))
    assert len(whole) == 9
    expected = whole[epoch * 3 + step :]
    assert len(tail) == len(expected) > 0
    for one, other in zip(tail, expected, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("name", LOADERS)
def test_first_batch_at_a_position_reads_no_earlier_film(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, epoch: int, step: int
) -> None:
    log = tmp_path / "reads"
    read = Shards.read

    def spy(shards: Shards, index: int, member: str) -> bytes:
        with log.open("a") as stream:  # a worker of the torch loader is another process
            stream.write(f"{index} {member}\n")
        return read(shards, index, member)

    plan = plan_of(films)
    whole = itertools.islice(train_batches(films, plan, input_spec_of(name), 0, 0, 0), len(places(plan)))
    expected = list(whole)[len(places(plan)) - len(places(plan, 0, epoch, step))]
    monkeypatch.setattr(Shards, "read", spy)
    forked = multiprocessing.get_context("fork")  # its workers inherit the spy
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: forked)
    stream = train_batches(films, plan, input_spec_of(name), 0, epoch, step)
    first = next(stream)
    reads = log.read_text().splitlines()
    del stream
    assert torch.equal(first.images, expected.images) and torch.equal(first.masks, expected.masks)
    ahead = [row for _, _, rows in places(plan, 0, epoch, step) for row in rows]
    has_mask = films.column("has_mask")
    wanted = [f"{row} {member}" for row in ahead for member in ("image", *["mask"] * int(has_mask[row]))]
    assert reads == wanted[: len(reads)]
    assert 2 <= len(reads) <= 2 * 2 * 5, "the batch itself, and what is prefetched"


@pytest.mark.parametrize("name", LOADERS)
def test_stream_ends_with_the_stage(films: Shards, name: str) -> None:
    plan = plan_of(films)
    assert len(list(train_batches(films, plan, input_spec_of(name), 0, 2, 2))) == 2
    assert list(train_batches(films, plan, input_spec_of(name), 0, 3, 0)) == []


# -- unusable films


def named_place(plan: EpochPlan, row: int) -> tuple[int, int]:
    """Return the first (epoch, step) of a film."""
    return next((epoch, step) for epoch, step, rows in places(plan) if row in rows)


@pytest.mark.parametrize("name", LOADERS)
def test_corrupt_film_ends_the_training_stream_and_is_named(damaged: tuple[Shards, str, str], name: str) -> None:
    shards, shard, key = damaged
    plan = plan_of(shards)
    epoch, step = named_place(plan, 7)
    stream = train_batches(shards, plan, input_spec_of(name, threads=2), 0, 0, 0)
    with pytest.raises(CorruptSample) as caught:
        list(stream)
    for part in (shard, key, "CRC32", f"epoch {epoch}, step {step}"):
        assert part in str(caught.value)
    assert next(stream, None) is None


@pytest.mark.parametrize("name", LOADERS)
def test_corrupt_film_after_a_restart_is_named_with_its_position(damaged: tuple[Shards, str, str], name: str) -> None:
    shards, shard, key = damaged
    plan = plan_of(shards)
    step = next(step for epoch, step, rows in places(plan, 0, 2, 0) if 7 in rows)
    with pytest.raises(CorruptSample, match=rf"(?s){re.escape(shard)}.*{key}.*epoch 2, step {step}\b"):
        list(train_batches(shards, plan, input_spec_of(name), 0, 2, 0))


@pytest.mark.parametrize("member", ["image", "mask"])
@pytest.mark.parametrize("name", LOADERS)
def test_film_that_is_not_an_image_ends_the_training_stream_and_is_named(
    films: Shards, rewritten: Callable[[int, str, Callable[[bytes], bytes]], Shards], name: str, member: str
) -> None:
    garbage = np.random.default_rng(0)
    row = int(np.flatnonzero(films.column("has_mask"))[0])
    shards = rewritten(row, member, lambda content: garbage.bytes(len(content)))
    plan = plan_of(shards)
    epoch, step = named_place(plan, row)
    stream = train_batches(shards, plan, input_spec_of(name), 0, 0, 0)
    with pytest.raises(CorruptSample, match="is not an image of 96x96 pixels") as caught:
        list(stream)
    for part in (str(shards.column("shard")[row]), str(shards.column("key")[row]), f"epoch {epoch}, step {step}"):
        assert part in str(caught.value)
    assert next(stream, None) is None


@pytest.mark.parametrize("name", LOADERS)
def test_corrupt_film_in_evaluation_is_named_as_not_in_training(damaged: tuple[Shards, str, str], name: str) -> None:
    shards, shard, key = damaged
    with pytest.raises(CorruptSample, match=rf"(?s){re.escape(shard)}.*{key}.*not in training"):
        list(eval_loader(shards, np.arange(12), plan_of(shards).stage, input_spec_of(name), 0, 1, with_mask=True))


@pytest.mark.parametrize("name", LOADERS)
def test_error_is_one_line(damaged: tuple[Shards, str, str], name: str) -> None:
    shards, *_ = damaged
    with pytest.raises(CorruptSample) as caught:
        list(train_batches(shards, plan_of(shards), input_spec_of(name), 0, 0, 0))
    assert len(str(caught.value).splitlines()) == 1


# -- evaluation


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", LOADERS)
def test_evaluation_yields_every_film_once_per_pass_and_fills_up_its_last_batch(
    films: Shards, name: str, world: int
) -> None:
    stage = plan_of(films, eval_batch=4).stage
    passes: list[Counter[int]] = [Counter(), Counter(), Counter()]
    for rank in range(world):
        evaluation = eval_loader(films, np.arange(11), stage, input_spec_of(name, 96), rank, world, with_mask=True)
        for seen in passes:  # one pipeline serves all passes
            for batch in evaluation:
                assert len(batch.images) == len(batch.masks) == 4
                for position, row in enumerate(batch.indices.tolist()):
                    seen[row] += 1
                    image, mask = decode(films.read(row, "image")), decode(films.read(row, "mask"))
                    np.testing.assert_allclose(255 * batch.images[position, 0].numpy(), image, atol=0.01)
                    np.testing.assert_array_equal(batch.masks[position, 0].numpy(), mask // 255)
                if len(batch.indices) == 3:
                    assert torch.equal(batch.images[3], batch.images[2])
    assert all(seen == dict.fromkeys(range(11), 1) for seen in passes)


@pytest.mark.parametrize("taken", [1, 2, 3])
@pytest.mark.parametrize("name", LOADERS)
def test_full_pass_follows_an_unfinished_one(films: Shards, name: str, taken: int) -> None:
    stage = plan_of(films, eval_batch=2).stage
    evaluation = eval_loader(films, np.arange(5), stage, input_spec_of(name), 0, 1, with_mask=True)
    left = list(itertools.islice(evaluation, taken))
    whole = list(evaluation)
    assert [batch.indices.tolist() for batch in whole] == [[0, 1], [2, 3], [4]]
    for one, other in zip(left, whole, strict=False):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("name", [*LOADERS, "synthetic"])
def test_more_ranks_than_batches_leave_an_empty_loader(films: Shards, name: str) -> None:
    evaluation = eval_loader(films, np.arange(3), plan_of(films).stage, input_spec_of(name), 1, 2, with_mask=True)
    assert list(evaluation) == list(evaluation) == []


@pytest.mark.parametrize("name", LOADERS)
def test_films_without_masks_are_read_without_them(films: Shards, name: str) -> None:
    evaluation = eval_loader(films, np.arange(2), plan_of(films).stage, input_spec_of(name), 0, 1, with_mask=False)
    (batch,) = evaluation
    assert isinstance(evaluation, EvalLoader)
    assert len(batch.images) == 8 and batch.masks.numel() == 0


def test_name_in_the_config_chooses_the_loader(films: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    import pneumo_dist.data.dali
    import pneumo_dist.data.synthetic
    import pneumo_dist.data.torch_loader

    def marked(mark: int) -> Callable[..., Iterator[Batch]]:
        def made(reader: FilmReader, batches: Iterable[list[FilmRequest]], *_: int) -> Iterator[Batch]:
            yield Batch(
                torch.full((1,), mark), torch.empty(0), np.array([request.index for request in next(iter(batches))])
            )

        return made

    names = ("dali", "torch", "synthetic")
    modules = (pneumo_dist.data.dali, pneumo_dist.data.torch_loader, pneumo_dist.data.synthetic)
    for mark, (name, module) in enumerate(zip(names, modules, strict=True)):
        monkeypatch.setattr(module, f"{name}_batches", marked(mark))
    for mark, name in enumerate(names):
        (batch,) = loader.train_batches(films, plan_of(films), input_spec_of(name), 0, 0, 0)
        assert batch.images.tolist() == [mark]
