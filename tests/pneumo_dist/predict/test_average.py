"""Averaged weights: the mean, its batch-norm statistics and its origin."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import flip_bit
from tiny_runs import ALONE, Trained, image
from tiny_state import save
from torch.optim.swa_utils import update_bn

from pneumo_dist import __version__
from pneumo_dist.config.ensemble import MemberConfig
from pneumo_dist.data.plan import split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.predict.average import average_weights, averaged_checkpoint
from pneumo_dist.predict.ensemble import find_trained_folds
from pneumo_dist.runs.checkpoint import load_checkpoint, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from shards.dataset.table import Shards
from shards.errors import InputError

MEMBER = MemberConfig(experiment="plain", average="weights", folds=(0,))


def test_mean_is_taken_in_float64_and_counters_are_the_firsts() -> None:
    states = [
        {"w": torch.tensor([1.0, 2.0**-24]), "h": torch.tensor([0.5]).half(), "n": torch.tensor(7)},
        {"w": torch.tensor([2.0**-24, 1.0]), "h": torch.tensor([0.25]).half(), "n": torch.tensor(9)},
        {"w": torch.tensor([2.0**-24, -1.0]), "h": torch.tensor([0.0]).half(), "n": torch.tensor(8)},
    ]
    mean = average_weights(states)
    by_hand = np.array([1 + 2**-24 + 2**-24, 2**-24 + 1 - 1]) / 3
    np.testing.assert_array_equal(mean["w"].numpy(), by_hand.astype(np.float32))
    assert mean["w"][0] != (torch.tensor(1.0) + 2.0**-24 + 2.0**-24) / 3, "float32 would lose the small terms"
    assert mean["h"].dtype == torch.float16 and float(mean["h"]) == 0.25
    assert int(mean["n"]) == 7
    mean["w"].zero_()
    assert states[0]["w"][0] == 1.0


def test_checkpoint_is_the_mean_with_statistics_of_the_training_films(trained: Trained, tmp_path: Path) -> None:
    (trained_fold,) = find_trained_folds(MEMBER, trained.runs, [])
    path = averaged_checkpoint(MEMBER, trained_fold, tmp_path / "new/averaged", trained.shards, ALONE)
    averaged, files = load_checkpoint(path), trained_fold.files(MEMBER)
    states = [load_checkpoint(file.path) for file in files]
    assert averaged["version"] == __version__
    assert averaged["parts"] == [file.path.name for file in files] and len(files) == 2
    assert averaged["lineage"] == states[0]["lineage"] and averaged["fold"] == 0 and averaged["averaged"] is None

    expected = build_model(trained_fold.experiment.model, pretrained=False)
    expected.load_state_dict(average_weights([weights_of(state) for state in states]))
    before = copy.deepcopy(expected.state_dict())
    films = split_fold(trained.shards, 0, always_train=False).train
    batches = [
        torch.cat([image(trained.shards, int(row)) for row in films[start : start + 3]])
        for start in range(0, len(films), 3)
    ]
    update_bn(batches, expected)
    moved = 0
    for name, value in expected.state_dict().items():
        if "running" in name or "tracked" in name:
            torch.testing.assert_close(averaged["model"][name], value, rtol=1e-6, atol=1e-6)
            moved += not torch.allclose(averaged["model"][name].float(), before[name].float())
        else:
            assert torch.equal(averaged["model"][name], before[name])
    assert moved >= 6


def test_existing_average_of_the_same_parts_is_reused(trained: Trained, tmp_path: Path) -> None:
    (trained_fold,) = find_trained_folds(MEMBER, trained.runs, [])
    save(tmp_path, 99)
    (tmp_path / ".step-00000099.abc.tmp").write_bytes(b"part")
    path = averaged_checkpoint(MEMBER, trained_fold, tmp_path, trained.shards, ALONE)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, "last"}
    stamp, parts = path.stat().st_mtime_ns, load_checkpoint(path)["parts"]
    assert averaged_checkpoint(MEMBER, trained_fold, tmp_path, None, ALONE) == path
    assert path.stat().st_mtime_ns == stamp
    best = MEMBER.model_copy(update={"checkpoints": "best"})
    other = averaged_checkpoint(best, trained_fold, tmp_path, trained.shards, ALONE)
    assert load_checkpoint(other)["parts"] == parts[:1]
    assert [each.name for each in tmp_path.glob("step-*")] == [other.name]


def test_other_or_missing_training_films_are_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trained_fold,) = find_trained_folds(MEMBER, trained.runs, [])
    only_test = Shards(trained.shards.folder)
    monkeypatch.setattr(only_test, "indices", lambda *splits: np.zeros(0, np.int64))
    for shards in (None, only_test):
        with pytest.raises(InputError, match=r"'python -m pneumo_dist average' with their --shards"):
            averaged_checkpoint(MEMBER, trained_fold, tmp_path, shards, ALONE)
    runs = tmp_path / "runs"
    shutil.copytree(trained.runs, runs, symlinks=True)
    (runs / "plain/fold0").rename(runs / "plain/fold2")
    (runs / "plain/fold1").rename(runs / "plain/fold0")
    (trained_fold,) = find_trained_folds(MEMBER, runs, [])
    with pytest.raises(InputError, match="trained on other films than fold 0"):
        averaged_checkpoint(MEMBER, trained_fold, tmp_path / "out", trained.shards, ALONE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("checkpoints", ["best", "top-k", "last"])
def test_no_older_checkpoint_passes_for_a_damaged_newest_one(
    trained: Trained, tmp_path: Path, checkpoints: str
) -> None:
    shutil.copytree(trained.runs, tmp_path / "runs", symlinks=True)
    (trained_fold,) = find_trained_folds(MEMBER, tmp_path / "runs", [])
    member = MEMBER.model_copy(update={"checkpoints": checkpoints})
    newest = max(trained_fold.files(MEMBER), key=lambda file: file.step)
    assert trained_fold.files(member)
    flip_bit(newest.path)
    with pytest.raises(InputError, match=f"{newest.path.name}: damaged"):
        trained_fold.files(member)


def test_damaged_part_is_an_input_error(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.runs, tmp_path / "runs", symlinks=True)
    (trained_fold,) = find_trained_folds(MEMBER, tmp_path / "runs", [])
    damaged = min(trained_fold.files(MEMBER), key=lambda file: file.step)
    flip_bit(damaged.path)
    with pytest.raises(InputError, match=f"{damaged.path.name}: damaged"):
        averaged_checkpoint(MEMBER, trained_fold, tmp_path / "out", trained.shards, ALONE)


def test_part_of_another_network_is_named(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.runs, tmp_path / "runs", symlinks=True)
    (trained_fold,) = find_trained_folds(MEMBER, tmp_path / "runs", [])
    part = min(trained_fold.files(MEMBER), key=lambda file: file.step)
    state = load_checkpoint(part.path)
    state["model"].popitem()
    changed = CheckpointFolder(part.path.parent).save(part.step, state)
    with pytest.raises(InputError, match=changed.path.name):
        averaged_checkpoint(MEMBER, trained_fold, tmp_path / "out", trained.shards, ALONE)
