"""The rehearsal of one rank of many: its messages are counted by hand for a small network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import experiment_of, phantom_shards

from benchmarks.common import in_fresh_process
from benchmarks.gpu_shipped import synthetic_batch
from benchmarks.gpu_steps import seed_torch
from benchmarks.rehearsal import Rehearsed, rehearsed, repeated, size
from benchmarks.rehearsal_ranks import rehearsal
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.watchdog import TRAINING
from pneumo_dist.train.step import Learner
from shards.dataset.table import Shards

WORLD = 16


def gradients(norm: bool) -> tuple[int, int]:
    """Return the bytes of all all-reduces of a step, and the number of parameters."""
    model = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8), "norm": norm}, "sync_batch_norm": False}
    stage = {"micro_batch": 2, "global_batch": 2 * WORLD, "loss": {"bce": 1, "dice": 0, "focal": 0}}
    experiment = experiment_of(stage, model=model)
    network = build_model(experiment.model, pretrained=False)
    with rehearsal(WORLD) as ranks:
        learner = Learner(experiment, experiment.stages[0], ranks, "float32", network)
        learner.start_epoch(0)
        ranks.beat(TRAINING)
        learner.step([synthetic_batch(experiment, experiment.stages[0], ranks.device)], 1, 0, seed_torch)
        sums = ranks.traffic.messages[TRAINING, "all-reduce"]
    assert sums.sent == sums.received
    return sums.sent, sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.slow
def test_a_step_reduces_each_gradient_once() -> None:
    found, parameters = in_fresh_process(gradients, True)
    assert found == 4 * parameters


def test_collectives_are_counted_with_what_every_rank_receives() -> None:
    with rehearsal(WORLD) as ranks:
        ranks.beat("a phase")
        rows = np.zeros((3, 5), np.int64)
        found = ranks.gather_array(rows)
        assert [len(each) for each in found] == [3, *[0] * (WORLD - 1)]
        # The length of the payload, and the payload with NumPy's header of 128 bytes.
        expected = [8, 128 + rows.nbytes]
        counted = ranks.traffic.messages["a phase", "all-gather"]
        assert (counted.count, counted.sent, counted.received) == (2, sum(expected), (WORLD - 1) * sum(expected))
        assert ranks.sum(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]
        ranks.beat("next")
        ranks.broadcast_buffers(torch.nn.BatchNorm2d(4))
        assert ranks.traffic.messages["next", "broadcast"].sent == 4 * 4 * 2 + 8


def test_repeated_films_can_be_read_and_trained_on(tmp_path: Path) -> None:
    few = phantom_shards(tmp_path)
    many = Shards(repeated(few.folder, tmp_path / "many", 500))
    assert len(many) == len(set(many.column("key"))) == 500
    assert len(many.indices("test")) == 20 and many.folds() == [0, 1, 2, 3, 4]
    assert many.read(13, "image") == few.read(1, "image")
    some = Shards(repeated(few.folder, tmp_path / "some", 500, trained=32))
    train, validation = some.fold_rows(0, always_train=False)
    assert len(train) == 32 and len(validation) == 96


@pytest.mark.slow
def test_nothing_that_every_rank_receives_grows_with_films_times_ranks(tmp_path: Path) -> None:
    few = phantom_shards(tmp_path)
    results = {}
    for world in (4, 16):
        data = repeated(few.folder, tmp_path / f"films{world}", 5200, trained=2 * world)
        results[world] = in_fresh_process(rehearsed, world, str(data), str(tmp_path / f"world{world}"))

    def received(result: Rehearsed) -> dict[str, int]:
        return {
            phase: sum(each.received for name, kind, each in result.messages if name == phase and kind != "to rank 0")
            for phase, *_ in result.messages
        }

    small, large = received(results[4]), received(results[16])
    assert set(small) == set(large) >= {"training", "gather", "save", "prediction"}
    # A thousand films with two histograms each, dealt in batches of 16, and a few kB per rank.
    assert small["gather"] > 100 * 513 * 8
    assert large["gather"] < 1.4 * small["gather"] + 16 * 10_000
    assert results[4].start.files >= 2 and results[4].start.read > 10_000


def test_sizes_are_rounded() -> None:
    assert [size(count) for count in (0, 999, 1234, 5_600_000, 7e9)] == ["0 B", "999 B", "1.23 kB", "5.6 MB", "7 GB"]
