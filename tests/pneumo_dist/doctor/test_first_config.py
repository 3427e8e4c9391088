"""A first config loads, fits the memory, and divides among the ranks."""

from pathlib import Path

import pytest
import torch
from builders import phantom_shards

from pneumo_dist.cli.app import app
from pneumo_dist.config.load import load_config
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.doctor.first_config import FEWEST_STEPS, STATE_BYTES, USED, batches, fit
from pneumo_dist.network.build import build_model
from pneumo_dist.network.fit import activation_bytes, meta_model
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.errors import InputError

SMALL = ModelConfig(arch="fcn")


def test_activations_are_those_that_a_real_forward_pass_keeps() -> None:
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    model = build_model(SMALL, pretrained=False).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.zeros(1, 3, 64, 64))
    assert output.requires_grad
    expected = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    assert activation_bytes(meta_model(SMALL), 3, 64) == expected > 0


def test_the_batch_fits_and_twice_the_batch_does_not() -> None:
    found = fit("cpu", 2 * 2**30, 128, is_half=False)
    weights = sum(parameter.numel() for parameter in meta_model(found.model).parameters())
    film = (found.bytes - STATE_BYTES * weights) // found.batch
    assert found.bytes <= USED * 2 * 2**30 and (
        found.batch == 32 or found.bytes + found.batch * film > USED * 2 * 2**30
    )


def test_a_large_network_with_few_films_makes_way_for_a_smaller_one() -> None:
    large, small = (fit("cuda", memory * 2**30, 1024, is_half=True) for memory in (80, 4))
    assert large.model.encoder == "se_resnext50_32x4d" and large.batch >= 16
    assert small.model.encoder == "resnet18"
    with pytest.raises(InputError, match=r"0\.5 GiB of memory are too little to train at 1024 px"):
        fit("cuda", 2**29, 1024, is_half=True)


@pytest.mark.parametrize("films", [1, 3, 13, 100, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("fitting", [1, 4, 32])
def test_batches_divide_among_the_ranks_and_leave_a_few_steps(films: int, ranks: int, fitting: int) -> None:
    batch, whole = batches(fitting, films, ranks)
    assert 1 <= batch <= fitting and whole % (batch * ranks) == 0
    assert whole * FEWEST_STEPS <= films or batch == 1
    assert batches(fitting, 10_000, ranks)[0] == fitting


def test_command_writes_a_config_that_loads_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = phantom_shards(tmp_path / "made", films=14, size=64)
    out = tmp_path / "mine.yaml"
    words = ["init-config", "--cpu", "--shards", str(shards.folder), "--out", str(out)]
    assert run(app, "pneumo_dist", words) == EXIT_DONE
    experiment = load_config(out).experiment
    assert experiment.name == "mine" and experiment.stages[0].image_size == 64
    text = out.read_text()
    assert run(app, "pneumo_dist", words) == EXIT_USAGE and out.read_text() == text
    assert "exists; remove it" in capsys.readouterr().err
    words[-1] = str(tmp_path / "mine.txt")
    assert run(app, "pneumo_dist", words) == EXIT_USAGE
    assert "give a file that ends with .yaml" in capsys.readouterr().err
