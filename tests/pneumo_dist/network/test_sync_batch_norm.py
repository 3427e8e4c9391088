"""Synchronised batch norm on 2 and 4 ranks equals the batch norm of one process over all films."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sync_norm_ranks import CHANNELS, films, network, step
from torch import nn

from pneumo_dist.network.sync_batch_norm import SyncBatchNorm, norm_statistics, synchronised
from shards.errors import InputError

Ways = dict[str, dict[str, torch.Tensor]]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Ways]:
    """The results of each rank, by way."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "tests/sync_norm_ranks.py", str(request.param), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{request.param}-{rank}.pt") for rank in range(request.param)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "tolerance"), [("contiguous", 1e-6), ("channels last", 1e-6), ("compiled", 1e-6), ("bf16", 2e-2)]
)
def test_step_equals_that_of_one_process(found: list[Ways], way: str, tolerance: float) -> None:
    """Outputs, gradients and running statistics, relative to the largest value; in float32 against float64."""
    is_half = way == "bf16"
    expected = step(network(), films().bfloat16()) if is_half else step(network(torch.float64), films().double())
    ranks = [each[way] for each in found]
    for name, value in expected.items():
        if name.startswith("gradient"):
            own = torch.stack([each[name].double() for each in ranks]).sum(0)
        elif name.startswith("buffer"):
            own = ranks[0][name].double()
            assert all(torch.equal(each[name], ranks[0][name]) for each in ranks)
        else:
            own = torch.cat([each[name].double() for each in ranks])
        assert float((own - value).abs().max()) <= tolerance * float(value.abs().max()), name


def test_names_weights_and_evaluation_are_those_of_batch_norm() -> None:
    plain = network()
    step(plain, films())
    other = network()
    made = synchronised(other)
    assert made is other and sum(isinstance(layer, SyncBatchNorm) for layer in made.modules()) == 1
    assert list(made.state_dict()) == list(plain.state_dict())
    made.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(films()), plain.eval()(films()), rtol=0, atol=0)


def test_single_norm_is_replaced_with_its_own_weights() -> None:
    norm = nn.BatchNorm2d(CHANNELS, eps=1e-3, momentum=0.2).eval()
    made = synchronised(norm)
    assert isinstance(made, SyncBatchNorm) and made.weight is norm.weight and made.running_var is norm.running_var
    assert (made.eps, made.momentum, made.training) == (1e-3, 0.2, False)


def test_norm_that_does_more_is_refused() -> None:
    import timm

    model = timm.create_model("mobilenetv3_small_050", pretrained=False)
    with pytest.raises(InputError, match=r"model\.sync_batch_norm: BatchNormAct2d cannot be synchronised"):
        synchronised(model)


def test_number_of_normalised_films_is_described() -> None:
    assert norm_statistics(network(), 2, 8) == "2 films of each rank"
    assert norm_statistics(network(), 1, 1) == "1 film"
    assert norm_statistics(synchronised(network()), 2, 8) == "16 films, 2 on each of 8 ranks"
    assert norm_statistics(nn.Conv2d(1, 1, 1), 2, 8) is None
