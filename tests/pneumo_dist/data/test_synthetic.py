"""The synthetic loader: the shapes and types of real batches and the plan's row numbers, without reading films."""

import numpy as np
import pytest
import torch

from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, split_fold
from shards.dataset.table import Shards


def input_spec_of(channels: int, channels_last: bool = False) -> InputSpec:
    return InputSpec(64, channels, DataConfig(loader="synthetic", channels_last=channels_last))


def plan_of(shards: Shards) -> EpochPlan:
    stage = StageConfig(name="main", global_batch=2, micro_batch=2, epochs=2, image_size=64, eval_batch=4)
    return EpochPlan(split_fold(shards, 0, always_train=False), stage, 3, 1)


@pytest.fixture
def unreadable(films: Shards, monkeypatch: pytest.MonkeyPatch) -> Shards:
    def refuse(*_: object) -> bytes:
        raise AssertionError("nothing is read")

    monkeypatch.setattr(Shards, "read", refuse)
    return films


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_shaped_as_those_of_films(unreadable: Shards, channels: int, channels_last: bool) -> None:
    batches = list(train_batches(unreadable, plan_of(unreadable), input_spec_of(channels, channels_last), 0, 0, 0))
    expected = torch.channels_last if channels_last else torch.contiguous_format
    for batch in batches:
        assert batch.images.shape == (2, channels, 64, 64) and batch.masks.shape == (2, 1, 64, 64)
        assert batch.images.dtype == torch.float32 and batch.masks.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=expected)
        assert set(batch.masks.unique().tolist()) == {0.0, 1.0}
        assert 0.5 < float(batch.images.std()) < 2
    assert len({batch.images.data_ptr() for batch in batches}) == 1, "the batch is not reused"


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (1, 1)])
def test_indices_are_the_plans(unreadable: Shards, epoch: int, step: int) -> None:
    plan = plan_of(unreadable)
    actual = [batch.indices.tolist() for batch in train_batches(unreadable, plan, input_spec_of(3), 0, epoch, step)]
    assert actual == [rows.tolist() for _, _, rows in plan.micro_batches(0, epoch, step)]
    assert len(actual) > 0


def test_evaluation_counts_every_film_once_in_full_batches(unreadable: Shards) -> None:
    stage, spec = plan_of(unreadable).stage, input_spec_of(1)
    evaluation = eval_loader(unreadable, np.arange(11), stage, spec, 0, 1, with_mask=True)
    for _ in range(2):
        batches = list(evaluation)
        assert [row for batch in batches for row in batch.indices.tolist()] == list(range(11))
        assert {len(batch.images) for batch in batches} == {4}
