"""The preflight reports all errors of a plan at once and writes nothing."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from only_finding import only
from tiny_runs import PLAIN, Trained

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor import preflight as module
from pneumo_dist.doctor.driver import DriverFiles
from pneumo_dist.doctor.findings import Status, lines_of
from pneumo_dist.doctor.preflight import TrainingPlan, check_device, check_environment, preflight
from pneumo_dist.network.build import build_model
from shards.dataset.table import Shards
from shards.files import sha256_file

PATH = Path("plain.yaml")


def changed(**values: Any) -> Experiment:
    return Experiment.model_validate({**PLAIN.model_dump(), **values})


def staged(**stage: Any) -> Experiment:
    first, *others = PLAIN.model_dump()["stages"]
    return changed(stages=[{**first, **stage}, *others])


@pytest.fixture
def plan(films: Shards, tmp_path: Path) -> TrainingPlan:
    """Two folds of the plain experiment, without errors."""
    return TrainingPlan(PLAIN, PATH, films.folder, tmp_path / "runs", (0, 1), 1, 1, on_gpu=False)


def errors(plan: TrainingPlan, env: dict[str, str] | None = None) -> list[str]:
    return lines_of(preflight(plan, env or {}), Status.ERROR)


def test_a_good_plan_has_no_error_and_leaves_nothing_behind(plan: TrainingPlan) -> None:
    assert errors(plan) == []
    assert plan.runs is not None and not plan.runs.exists()


def test_all_errors_are_reported_at_once(plan: TrainingPlan, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    model = {"arch": "deeplabv3plus", "encoder": "resnet18", "encoder_weights_file": "/no/file"}
    experiment = Experiment.model_validate(
        {
            "name": "bad",
            "model": {**model, "encoder_weights_sha256": "0" * 64},
            "stages": [
                {"name": "one", "image_size": 96, "micro_batch": 1, "global_batch": 50},
                {"name": "two", "image_size": 96, "micro_batch": 2, "global_batch": 3},
            ],
        }
    )
    messages = errors(replace(plan, experiment=experiment, folds=(0, 7)), {"RANK": "x", "WORLD_SIZE": "1"})
    for words in (
        "plain.yaml: stage two: global_batch 3 is not a multiple of 1 ranks x micro_batch 2; set",
        "plain.yaml: stage one: with micro_batch 1 and image_size 96, a batch norm of deeplabv3plus with encoder",
        "plain.yaml: stage one: epoch 1 has 6 films, fewer than global_batch 50; lower it",
        "no fold 7; its folds are 0, 1 (--fold)",
        "model.encoder_weights_file /no/file: No such file or directory; set the path",
        f"{tmp_path}/runs: is a file; give another --runs",
    ):
        assert sum(words in line for line in messages) == 1, (words, messages)
    assert all("\n" not in line for line in messages)


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        (changed(model={"arch": "unet", "encoder": "resnet19"}), "plain.yaml: model.encoder resnet19: unknown; did"),
        (changed(model={"arch": "fpn", "decoder_attention_type": "scse"}), "plain.yaml: model.decoder_attention_type:"),
        (changed(init={"experiment": "nobody", "stage": "main"}), "no checkpoints; train that fold first"),
        (staged(epochs=10**8, global_batch=10**6, micro_batch=1), "epoch 1 has 6 films, fewer than global_batch"),
        (changed(model={"arch": "pan", "encoder": "resnet18"}), "does not accept image_size 64"),
    ],
)
def test_each_error_names_its_key_and_a_fix(plan: TrainingPlan, experiment: Experiment, words: str) -> None:
    messages = errors(replace(plan, experiment=experiment))
    assert any(words in line for line in messages) and all("; " in line for line in messages)


def test_a_synchronised_batch_norm_sees_the_films_of_all_ranks(plan: TrainingPlan) -> None:
    model = {"arch": "deeplabv3", "encoder": "resnet18", "in_channels": 1, "sync_batch_norm": True}
    experiment = replace(
        plan, experiment=Experiment.model_validate({**staged(micro_batch=1).model_dump(), "model": model})
    )
    assert "needs two" in errors(experiment)[0]
    assert "needs two" in errors(replace(experiment, on_gpu=True))[0]
    assert not any("needs two" in line for line in errors(replace(experiment, on_gpu=True, world=2)))
    assert errors(replace(experiment, on_gpu=True, world=None, ranks=None)) == []


def warnings_of(plan: TrainingPlan, model: dict[str, Any], **stage: Any) -> list[str]:
    content = {**staged(**stage).model_dump(), "model": {"in_channels": 1, **model}}
    return lines_of(preflight(replace(plan, experiment=Experiment.model_validate(content)), {}), Status.WARNING)


UNET: dict[str, Any] = {"arch": "unet", "encoder": "resnet18", "decoder_channels": (8, 8, 8, 8, 8)}


@pytest.mark.parametrize(
    ("world", "on_gpu", "micro_batch", "model", "words"),
    [
        (2, True, 1, UNET, "with micro_batch 1 on 2 ranks, batch norms see one film at a time, not the whole batch"),
        (2, False, 1, UNET, "set model.sync_batch_norm: true, or train on one rank"),
        (2, False, 1, {**UNET, "sync_batch_norm": True}, None),
        (2, True, 1, {**UNET, "sync_batch_norm": True}, None),
        (2, True, 2, UNET, None),
        (1, True, 1, UNET, None),
        (2, True, 1, {"arch": "fcn", "fcn": {"norm": False}}, None),
    ],
)
def test_batch_norms_of_single_films_are_announced(
    plan: TrainingPlan, world: int, on_gpu: bool, micro_batch: int, model: dict[str, Any], words: str | None
) -> None:
    """A recipe with batches of two films on one GPU trains another network on two GPUs with one film each."""
    on_ranks = replace(plan, world=world, on_gpu=on_gpu)
    lines = warnings_of(on_ranks, model, global_batch=4, micro_batch=micro_batch)
    assert [words is not None and words in line for line in lines if "batch norm" in line] == [True] * (
        words is not None
    )


def test_a_file_to_start_from_is_checked(plan: TrainingPlan, tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(build_model(plan.experiment.model, pretrained=False).state_dict(), path)
    init = {"file": str(path), "sha256": sha256_file(path)}
    assert errors(replace(plan, experiment=changed(init=init))) == []
    other = changed(init=init, model={**plan.experiment.model.model_dump(), "fcn": {"widths": (2, 2, 2), "norm": True}})
    (message,) = errors(replace(plan, experiment=other))
    assert message.startswith(f"init.file {path}: holds no weights of fcn: ") and "of another shape" in message
    path.write_bytes(b"nothing")
    assert "its SHA-256 is" in errors(replace(plan, experiment=changed(init=init)))[0]
    path.unlink()
    (message,) = errors(replace(plan, experiment=changed(init=init)))
    assert message == f"init.file {path}: No such file or directory; give the file of the weights"


def test_an_average_needs_two_films_where_its_statistics_are_measured(plan: TrainingPlan) -> None:
    model = {"arch": "deeplabv3", "encoder": "resnet18", "in_channels": 1}
    experiment = staged(eval_batch=1, optim={"swa_epochs": 1})
    messages = errors(replace(plan, experiment=Experiment.model_validate({**experiment.model_dump(), "model": model})))
    assert (
        len(messages) == 1 and "with eval_batch 1" in messages[0] and messages[0].endswith("set eval_batch: 2 or more")
    )


def test_existing_checkpoints_are_checked_as_by_a_resume(trained: Trained, plan: TrainingPlan) -> None:
    ready = replace(plan, shards=trained.shards.folder, runs=trained.runs)
    assert errors(ready) == []
    other = replace(ready, experiment=changed(seed=3))
    assert [line.split(": ")[1].split(";")[0] for line in errors(other)] == ["was trained with another seed"] * 2
    assert errors(replace(other, resumes=False)) == []


def test_weights_that_a_checkpoint_replaces_are_not_checked(trained: Trained, plan: TrainingPlan) -> None:
    model = {**PLAIN.model_dump()["model"], "arch": "unet", "fcn": None}
    model |= {"encoder_weights_file": "/no/file", "encoder_weights_sha256": "0" * 64}
    wanted = replace(plan, experiment=changed(model=model), runs=trained.runs, resumes=False)
    assert errors(wanted) == []
    assert "/no/file" in errors(replace(wanted, runs=None))[0]


def test_without_shards_only_the_config_is_checked(plan: TrainingPlan) -> None:
    alone = replace(plan, shards=None, folds=())
    assert errors(alone) == []
    assert len(errors(replace(alone, experiment=staged(global_batch=3)))) == 1


@pytest.mark.parametrize("harm", ["missing", "empty", "file"])
def test_folder_without_shards_is_one_line(plan: TrainingPlan, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "shards"
    if harm == "empty":
        folder.mkdir()
    elif harm == "file":
        folder.write_text("x")
    (line,) = errors(replace(plan, shards=folder))
    assert str(folder) in line


def test_variables_of_another_launcher_are_named() -> None:
    assert check_environment({}) == []
    words = ("MASTER_ADDR, LOCAL_RANK set by another launcher", "unset MASTER_ADDR LOCAL_RANK")
    only(check_environment({"MASTER_ADDR": "n1", "LOCAL_RANK": "2"}), Status.WARNING, *words)


Machine = Callable[[int, bool], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets how many GPUs torch sees, and whether a driver is loaded."""

    def make(gpus: int, driver: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(module, "driver_files", lambda: DriverFiles(driver, (), 0, driver))

    return make


def test_each_rank_has_a_gpu_where_there_are_any(machine: Machine) -> None:
    machine(2, True)
    only(check_device(False, 2, {}), Status.OK, "2 GPUs for 2 ranks")
    only(check_device(False, 3, {}), Status.ERROR, "3 ranks on this node, but torch sees 2 GPUs -> ")
    only(
        check_device(False, 3, {"CUDA_VISIBLE_DEVICES": "4,5"}),
        Status.ERROR,
        "torch sees 2 GPUs (CUDA_VISIBLE_DEVICES=4,5)",
    )
    assert check_device(True, 9, {}) == []


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_variable_that_hides_all_gpus_is_named(machine: Machine, value: str) -> None:
    machine(0, True)
    words = (f"CUDA_VISIBLE_DEVICES={value} hides every GPU", "unset it, or pass --cpu")
    only(check_device(False, 1, {"CUDA_VISIBLE_DEVICES": value}), Status.ERROR, *words)
    only(
        check_device(False, 1, {"CUDA_VISIBLE_DEVICES": "GPU-none"}), Status.ERROR, "cannot use it (CUDA_VIS", "doctor"
    )
    machine(0, False)
    only(check_device(False, 1, {"CUDA_VISIBLE_DEVICES": value}), Status.WARNING, "the CPU is used", "--cpu")


def test_a_folder_that_cannot_be_written_to_is_an_error(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (line,) = errors(plan)
    assert "cannot be written to; change its permissions" in line


def test_a_full_disk_is_an_error_before_the_first_step(plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    (line,) = errors(plan)
    assert "one checkpoint needs" in line
