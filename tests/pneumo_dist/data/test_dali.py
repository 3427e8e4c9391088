"""The DALI graph on the CPU against OpenCV, and its streams."""

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pneumo_dist.config import AugmentConfig, DataConfig, StageConfig
from pneumo_dist.data.augment import Parameters, draw, matrix
from pneumo_dist.data.dali import Batch, Input, eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, split_fold
from shards.members import CorruptSample
from shards.table import Shards

PLAIN = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
STRONG = AugmentConfig.model_validate(
    {
        "hflip": 0.5,
        "shift_scale_rotate": {"p": 0.9, "shift": 0.1, "scale": 0.2, "rotate": 40},
        "brightness_contrast": {"p": 0.7, "brightness": 0.2, "contrast": 0.3},
    }
)
GEOMETRY = STRONG.model_copy(
    update={"brightness_contrast": AugmentConfig().brightness_contrast.model_copy(update={"p": 0.0})}
)


def plan_of(shards: Shards, world: int = 1, **stage: object) -> EpochPlan:
    config = StageConfig.model_validate(
        {"name": "main", "global_batch": 4, "micro_batch": 2, "epochs": 2, "image_size": 96, **stage}
    )
    return EpochPlan(split_fold(shards, 0, always_train=False), config, 11, world)


def decoded(shards: Shards, index: int, member: str) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(shards.read(index, member), np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(image, np.uint8)


def warped(image: npt.NDArray[np.uint8], parameters: Parameters, size: int, how: int) -> npt.NDArray[np.float64]:
    """Resample with OpenCV, whose coordinates count from the first pixel's centre."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    whole = np.vstack([matrix(parameters, size, image.shape[0]), [0, 0, 1]])
    centred = (np.linalg.inv(half) @ whole @ half)[:2]
    flags = how | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image.astype(np.float32), centred, (size, size), flags=flags), np.float64)


def epoch_of(batches: list[Batch], plan: EpochPlan) -> list[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Return (epoch, table row, image, mask) of every film of a stream."""
    per_epoch = plan.steps * plan.accumulation
    return [
        (number // per_epoch, int(row), batch.images[position], batch.masks[position])
        for number, batch in enumerate(batches)
        for position, row in enumerate(batch.indices)
    ]


@pytest.mark.parametrize("size", [96, 64])
def test_graph_equals_opencv_with_the_drawn_parameters(films: Shards, size: int) -> None:
    plan = plan_of(films, image_size=size)
    found = epoch_of(list(train_batches(films, plan, STRONG, Input(size, 1, PLAIN), 0, 0, 0)), plan)
    assert len(found) == 2 * plan.steps * 4
    inside = slice(4, -4)
    overlap = union = 0.0
    for epoch, row, image, mask in found:
        parameters = draw(STRONG, plan.seed, epoch, str(films.column("key")[row]))
        expected = warped(decoded(films, row, "image"), parameters, size, cv2.INTER_LINEAR)
        expected = np.clip(expected * parameters.gain + 255 * parameters.offset, 0, 255)
        assert image.shape == mask.shape == (1, size, size)
        assert np.abs(255 * image[0].numpy() - expected)[inside, inside].mean() < 2
        label = warped(decoded(films, row, "mask"), parameters, size, cv2.INTER_NEAREST) > 127
        seen = mask[0].numpy() > 0.5
        overlap, union = overlap + float((label & seen).sum()), union + float((label | seen).sum())
    assert union > 100
    assert overlap / union > 0.99


def test_images_and_masks_are_plain_copies_of_their_kind(films: Shards) -> None:
    plan = plan_of(films)
    batches = list(train_batches(films, plan, STRONG, Input(96, 1, PLAIN), 0, 0, 0))
    for batch in batches:
        assert batch.images.dtype == batch.masks.dtype == torch.float32
        assert float(batch.images.min()) >= 0 and float(batch.images.max()) <= 255 / 255
        assert set(batch.masks.unique().tolist()) <= {0.0, 1.0}
    assert len({batch.images.data_ptr() for batch in batches}) == len(batches)


def test_normalisation_takes_mean_and_deviation_of_each_channel(films: Shards) -> None:
    stage = plan_of(films).stage
    rows = np.array([0, 1])
    (plain,) = eval_loader(films, rows, stage.model_copy(update={"eval_batch": 2}), Input(96, 1, PLAIN), 0, 1, True)
    three = Input(96, 3, DataConfig(mean=(0.1, 0.4, 0.5), std=(0.2, 0.25, 0.5)))
    (normal,) = eval_loader(films, rows, stage.model_copy(update={"eval_batch": 2}), three, 0, 1, True)
    assert normal.images.shape == (2, 3, 96, 96)
    for channel, (mean, deviation) in enumerate(((0.1, 0.2), (0.4, 0.25), (0.5, 0.5))):
        torch.testing.assert_close(
            normal.images[:, channel], (plain.images[:, 0] - mean) / deviation, atol=1e-5, rtol=1e-5
        )
    one = Input(96, 1, three.data)
    (grey,) = eval_loader(films, rows, stage.model_copy(update={"eval_batch": 2}), one, 0, 1, True)
    torch.testing.assert_close(grey.images[:, 0], normal.images[:, 0])


def test_film_at_its_stored_size_passes_unchanged(films: Shards) -> None:
    (batch,) = eval_loader(films, np.array([3]), plan_of(films).stage, Input(96, 1, PLAIN), 0, 1, True)
    np.testing.assert_allclose(255 * batch.images[0, 0].numpy(), decoded(films, 3, "image"), atol=0.01)
    np.testing.assert_array_equal(batch.masks[0, 0].numpy(), decoded(films, 3, "mask") // 255)


def test_image_that_is_its_own_mask_stays_aligned_with_it(shapes: Shards) -> None:
    plan = plan_of(shapes, global_batch=2, epochs=8, image_size=64)
    count = 0
    for batch in train_batches(shapes, plan, GEOMETRY, Input(64, 1, PLAIN), 0, 0, 0):
        for image, mask in zip(batch.images > 0.5, batch.masks > 0.5, strict=True):
            assert int((image & mask).sum()) / int((image | mask).sum()) > 0.94
            count += 1
    assert count == 16


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_stream_from_the_middle_is_the_tail_of_the_whole(films: Shards, epoch: int, step: int, prefetch: int) -> None:
    plan = plan_of(films, global_batch=2, micro_batch=1)
    spec = Input(96, 1, DataConfig(prefetch=prefetch))
    whole = list(train_batches(films, plan, STRONG, spec, 0, 0, 0))
    tail = list(train_batches(films, plan, STRONG, spec, 0, epoch, step))
    assert len(whole) == 2 * plan.steps * 2
    expected = whole[(epoch * plan.steps + step) * 2 :]
    assert len(tail) == len(expected) > 0
    for one, other in zip(tail, expected, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)


def test_two_ranks_see_the_pixels_that_one_sees(films: Shards) -> None:
    def by_film(world: int) -> dict[tuple[int, int], torch.Tensor]:
        plan = plan_of(films, world=world)
        streams = [list(train_batches(films, plan, STRONG, Input(96, 1, PLAIN), rank, 0, 0)) for rank in range(world)]
        return {(epoch, row): image for batches in streams for epoch, row, image, _ in epoch_of(batches, plan)}

    alone, together = by_film(1), by_film(2)
    assert alone.keys() == together.keys() and len(alone) == 8
    assert all(torch.equal(alone[film], together[film]) for film in alone)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_sees_every_film_once_and_its_short_last_batch(films: Shards, world: int) -> None:
    rows = np.arange(11)
    stage = plan_of(films, eval_batch=4).stage
    seen: list[int] = []
    for rank in range(world):
        loader = eval_loader(films, rows, stage, Input(96, 1, PLAIN), rank, world, with_mask=True)
        for _ in range(2):  # one pipeline serves every pass
            one_pass = list(loader)
            for batch in one_pass:
                assert len(batch.images) == len(batch.masks) == 4
                for position, row in enumerate(batch.indices):
                    image = decoded(films, int(row), "image")
                    np.testing.assert_allclose(255 * batch.images[position, 0].numpy(), image, atol=0.01)
        seen += [int(row) for batch in one_pass for row in batch.indices]
        short = [batch for batch in one_pass if len(batch.indices) == 3]
        assert all(torch.equal(batch.images[3], batch.images[2]) for batch in short)
    assert sorted(seen) == rows.tolist()


def test_more_ranks_than_batches_leave_an_empty_loader(films: Shards) -> None:
    loader = eval_loader(films, np.arange(3), plan_of(films).stage, Input(96, 1, PLAIN), 1, 2, with_mask=True)
    assert list(loader) == []


def test_evaluation_left_in_the_middle_starts_again_at_its_first_film(films: Shards) -> None:
    loader = eval_loader(films, np.arange(6), plan_of(films, eval_batch=2).stage, Input(96, 1, PLAIN), 0, 1, True)
    first = next(iter(loader))
    again = next(iter(loader))
    np.testing.assert_array_equal(first.indices, again.indices)
    assert torch.equal(first.images, again.images)


def test_films_without_masks_are_read_without_them(films: Shards) -> None:
    (batch,) = eval_loader(films, np.arange(2), plan_of(films).stage, Input(96, 1, PLAIN), 0, 1, with_mask=False)
    assert batch.masks.numel() == 0


def test_corrupt_film_is_an_error_that_names_shard_and_key(damaged: tuple[Shards, str, str]) -> None:
    shards, shard, key = damaged
    with pytest.raises(CorruptSample) as caught:
        list(eval_loader(shards, np.arange(12), plan_of(shards).stage, Input(96, 1, PLAIN), 0, 1, with_mask=True))
    assert shard in str(caught.value) and key in str(caught.value)


def test_corrupt_film_stops_the_training_stream(damaged: tuple[Shards, str, str]) -> None:
    shards, shard, key = damaged
    fold = int(shards.column("fold")[7])
    plan = EpochPlan(split_fold(shards, 1 - fold, always_train=False), plan_of(shards, global_batch=2).stage, 0, 1)
    with pytest.raises(CorruptSample, match=rf"{shard}.*{key}"):
        list(train_batches(shards, plan, STRONG, Input(96, 1, PLAIN), 0, 0, 0))
