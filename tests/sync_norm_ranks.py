"""Steps of a small network with synchronised batch norm on several ranks, for test_sync_batch_norm.py.

python tests/sync_norm_ranks.py WORLD FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pneumo_dist.network.sync_batch_norm import synchronised
from shards.parent import die_with_parent

FILMS, CHANNELS = 8, 3
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


def network(kind: torch.dtype = torch.float32) -> nn.Sequential:
    """Return a batch norm whose weights are not those at the start."""
    chance, norm = torch.Generator().manual_seed(1), nn.BatchNorm2d(CHANNELS, momentum=0.3)
    nn.init.normal_(norm.weight, 1.0, 0.5, generator=chance)
    nn.init.normal_(norm.bias, generator=chance)
    return nn.Sequential(norm).to(kind)


def films() -> torch.Tensor:
    """Return films that differ in mean and spread, so that statistics of a few of them are others."""
    images = torch.randn(FILMS, CHANNELS, 9, 7, generator=torch.Generator().manual_seed(2))
    spread, mean = torch.linspace(0.5, 2, FILMS), torch.linspace(-2, 3, FILMS)
    return images * spread[:, None, None, None] + mean[:, None, None, None]


def step(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs, all gradients and the buffers of two forward and backward passes with a fixed loss."""
    found: dict[str, torch.Tensor] = {}
    for number in range(2):
        own = (images + number).requires_grad_()
        model.zero_grad()
        output = model(own)
        (output.double().sin() * torch.linspace(0, 1, output[0].numel()).view_as(output[0])).sum().backward()
        found |= {f"output {number}": output.detach(), f"images {number}": given(own.grad)}
    found |= {f"gradient {name}": given(parameter.grad) for name, parameter in model.named_parameters()}
    return found | {f"buffer {name}": buffer for name, buffer in model.named_buffers()}


def given(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient


def on_rank(rank: int, world: int, folder: str) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    own = slice(rank * FILMS // world, (rank + 1) * FILMS // world)
    found = {}
    for layout, memory_format in LAYOUTS.items():
        images = films()[own].contiguous(memory_format=memory_format)
        model = synchronised(network()).to(memory_format=memory_format)
        found[layout] = step(model, images)
    found["bf16"] = step(synchronised(network()), films()[own].bfloat16())
    compiled = synchronised(network())
    compiled.compile(fullgraph=True, backend="aot_eager")
    found["compiled"] = step(compiled, films()[own])
    torch.save(found, Path(folder) / f"{world}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    number = int(sys.argv[1])
    torch.multiprocessing.start_processes(on_rank, (number, sys.argv[2]), nprocs=number, start_method="spawn")
