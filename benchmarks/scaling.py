"""Estimate, on paper, the cost of gradient reduction and of input on 8, 64 and 1,024 GPUs.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --batch 4 --efficiency 0.5
    python -m benchmarks.scaling --markdown

Nothing here is measured. docs/scaling.md lists the assumptions and contains the tables that --markdown prints.

Within a node, gradients are reduced over NVLink. Across nodes, each GPU reduces its share over its own InfiniBand card,
and the node then gathers the shares: a ring at each level (R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of
collective communication operations in MPICH", IJHPCA 19(1), 2005; NCCL does no worse). DDP reduces buckets one after
the other, each as soon as the backward pass has filled it (S. Li et al., "PyTorch Distributed", VLDB 2020).
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from benchmarks.tables import percent, table

Lines = Sequence[Sequence[str]]

GIGA, KILO, MEBI = 1e9, 1e3, 2**20
WORLDS = (8, 64, 1024)
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Interconnect:
    """Bytes per second that a GPU sends, and latency of a message in seconds, within a node and across nodes.

    `efficiency` is the share of the nominal bandwidth that a reduction reaches.
    """

    name: str
    within: float
    across: float
    within_latency: float = 3e-6
    across_latency: float = 5e-6
    efficiency: float = 0.8


H100 = Interconnect("NVLink 4 at 450 GB/s, one 400 Gbit/s InfiniBand card per GPU", 450 * GIGA, 50 * GIGA)
A100 = Interconnect("NVLink 3 at 300 GB/s", 300 * GIGA, 25 * GIGA)


@dataclass(frozen=True)
class Network:
    """Training of a network on one GPU: parameters, films per step, and films per second."""

    name: str
    parameters: int
    batch: int
    rate: float

    @property
    def step_s(self) -> float:
        return self.batch / self.rate


@dataclass(frozen=True)
class Assumptions:
    """Bytes per gradient value, bytes per DDP bucket, and the backward pass's share of a step."""

    gradient_bytes: int = 4
    bucket: int = 25 * MEBI
    backward: float = 2 / 3


# Eager bf16 roofline on an H100 at 512 px, in images/s. It is an upper bound, so it demands the most input and leaves
# the least time in which to hide the reduction.
RATES = {"se_resnext50_32x4d": 654.0, "se_resnext101_32x4d": 464.0, "senet154": 275.0}
# Bytes of a film of 1024 px (the upper end of the observed sizes), and the time to decode one on a core of an AMD EPYC.
FILM_BYTES = {"PNG": 480 * KILO, "JPEG": 175 * KILO}
PNG_DECODE_S = 7.3e-3
FILMS = 10_675  # the labelled films of the competition's first stage
BATCH = 16


def unet_parameters(encoder: str) -> int:
    """Count the parameters of a U-Net without allocating them."""
    return _parameters(encoder, "")


def encoder_parameters(encoder: str) -> int:
    """Count the parameters of a U-Net's encoder."""
    return _parameters(encoder, "encoder")


@lru_cache
def _parameters(encoder: str, part: str) -> int:
    import torch

    from pneumo_dist.config.model import ModelConfig
    from pneumo_dist.network.build import build_model

    with torch.device("meta"):
        model = build_model(ModelConfig(encoder=encoder), pretrained=False)
    return sum(parameter.numel() for parameter in model.get_submodule(part).parameters())


def all_reduce_s(size: float, world: int, wires: Interconnect) -> float:
    """Return the seconds that `world` GPUs need to all-reduce `size` bytes."""
    local = min(world, GPUS_PER_NODE)
    nodes = math.ceil(world / GPUS_PER_NODE)
    within = 2 * (local - 1) * (size / local / (wires.within * wires.efficiency) + wires.within_latency)
    across = 2 * (nodes - 1) * (size / local / nodes / (wires.across * wires.efficiency) + wires.across_latency)
    return within + across


def exposed_s(network: Network, world: int, wires: Interconnect, assumed: Assumptions) -> float:
    """Return the seconds by which the reductions outlast the backward pass that they overlap.

    The backward pass fills the buckets at a constant rate. A bucket's reduction starts once it is full and the previous
    one is done. The last bucket is full when the pass ends, so its reduction is never hidden.
    """
    gradient = network.parameters * assumed.gradient_bytes
    count = max(1, math.ceil(gradient / assumed.bucket))
    backward = assumed.backward * network.step_s
    one = all_reduce_s(gradient / count, world, wires)
    end = 0.0
    for bucket in range(count):
        end = max(end, backward * (bucket + 1) / count) + one
    return end - backward


def speedup(network: Network, world: int, wires: Interconnect, assumed: Assumptions) -> float:
    """Return the rate of `world` GPUs relative to one GPU, at the same batch per GPU."""
    return world * network.step_s / (network.step_s + exposed_s(network, world, wires, assumed))


# --- what is printed


def reduction_table(networks: Sequence[Network], wires: Interconnect, assumed: Assumptions) -> list[list[str]]:
    """Return a line per network and world size: step, all-reduce, exposed communication and speed-up."""
    reductions = ("all-reduce, float32", "all-reduce, bf16", "not hidden, float32")
    lines = [["U-Net", "GPUs", "step", *reductions, "speed-up"]]
    half = Assumptions(2, assumed.bucket, assumed.backward)
    for network in networks:
        for world in WORLDS:
            whole, small = (reduced_s(network, world, wires, each) for each in (assumed, half))
            exposed = exposed_s(network, world, wires, assumed)
            gained = speedup(network, world, wires, assumed)
            lines.append(
                [
                    f"{network.name} ({network.parameters / 1e6:.1f} M)",
                    f"{world:,}",
                    *map(milli, (network.step_s, whole, small, exposed)),
                    f"{gained:,.1f} x ({percent(gained / world)})",
                ]
            )
    return lines


def reduced_s(network: Network, world: int, wires: Interconnect, assumed: Assumptions) -> float:
    """Return the total seconds of all buckets' reductions."""
    gradient = network.parameters * assumed.gradient_bytes
    count = max(1, math.ceil(gradient / assumed.bucket))
    return count * all_reduce_s(gradient / count, world, wires)


def input_table(networks: Sequence[Network]) -> list[list[str]]:
    """Return a line per network and world size: films per second, and the bandwidth and cores that they need."""
    needs = (*(f"{codec}, GB/s" for codec in FILM_BYTES), "cores per GPU to decode PNG")
    lines = [["U-Net", "GPUs", "films/s", *needs, f"steps in an epoch of {FILMS:,} films"]]
    for network in networks:
        for world in WORLDS:
            films = network.rate * world
            volumes = [f"{films * size / GIGA:.1f}" for size in FILM_BYTES.values()]
            cores, steps = network.rate * PNG_DECODE_S, FILMS // (network.batch * world)
            lines.append([network.name, f"{world:,}", f"{films:,.0f}", *volumes, f"{cores:.1f}", str(steps)])
    return lines


@dataclass(frozen=True)
class Published:
    """A published speed-up of a network on 8 GPUs."""

    network: Network
    speedup: float
    source: str


def published() -> list[Published]:
    """Return NVIDIA's figures for a DGX A100, 8 x A100 80 GB, mixed precision (github.com/NVIDIA/DeepLearningExamples).

    The rates are NVIDIA's for one GPU. Two values are assumptions: the batch of the first network, which its table does
    not state, and the 40 million parameters of the nnU-Net, which are more than it has.
    """
    classifier = 2048 * 1000 + 1000
    parameters = encoder_parameters("se_resnext101_32x4d") + classifier
    classification = Network("SE-ResNeXt101 32x4d, ImageNet, batch 128", parameters, 128, 855.0)
    segmentation = [
        (Network(f"nnU-Net 2D, batch {batch}", 40_000_000, batch, rate), times)
        for batch, rate, times in ((32, 1040.58, 7.45), (64, 1238.68, 7.60), (128, 1345.29, 7.95))
    ]
    return [
        Published(classification, 6.75, "PyTorch/Classification/ConvNets/se-resnext101-32x4d, container 21.03"),
        *(Published(network, times, "PyTorch/Segmentation/nnUNet, container 22.11") for network, times in segmentation),
    ]


def published_table(assumed: Assumptions) -> list[list[str]]:
    """Return a line per published figure: the model's prediction and its error."""
    lines = [["published, 8 x A100", "speed-up", "this model", "the model is too high by"]]
    for each in published():
        predicted = speedup(each.network, 8, A100, assumed)
        error = predicted / each.speedup - 1
        lines.append([each.network.name, f"{each.speedup:.2f} x", f"{predicted:.2f} x", percent(error)])
    return lines


def milli(seconds: float) -> str:
    """Return seconds as milliseconds."""
    return f"{seconds * 1e3:.2f} ms"


def markdown(lines: Lines) -> str:
    """Return lines, the first of which is the head, as a Markdown table."""
    return table(lines[0], lines[1:]).rstrip()


def plain(lines: Lines) -> str:
    """Return lines as aligned columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=BATCH, help=f"films per GPU and step (default {BATCH})")
    parser.add_argument("--efficiency", type=float, default=0.8, help="share of the nominal bandwidth (default 0.8)")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/scaling.md")
    arguments = parser.parse_args()
    wires = Interconnect(H100.name, H100.within, H100.across, efficiency=arguments.efficiency)
    print("\n\n".join(sections(arguments.batch, wires, markdown if arguments.markdown else plain)))
    return 0


def sections(batch: int, wires: Interconnect, form: Callable[[Lines], str]) -> list[str]:
    """Return the tables as text."""
    assumed = Assumptions()
    networks = [Network(encoder, unet_parameters(encoder), batch, rate) for encoder, rate in RATES.items()]
    tables = (reduction_table(networks, wires, assumed), input_table(networks), published_table(assumed))
    return [form(lines) for lines in tables]


if __name__ == "__main__":
    sys.exit(main())
