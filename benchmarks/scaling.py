"""On paper: what exchanging gradients and feeding films cost on 8, 64 and 1,024 GPUs.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --batch 4 --efficiency 0.5
    python -m benchmarks.scaling --markdown

Nothing here is measured. docs/scaling.md says what is assumed, and holds the tables that --markdown prints.

Within a node, gradients are reduced over NVLink; across nodes, each GPU reduces its share of them over its own
InfiniBand card, and the node gathers them again: a ring at each level (R. Thakur, R. Rabenseifner and W. Gropp,
"Optimization of collective communication operations in MPICH", IJHPCA 19(1), 2005; NCCL does no worse). DDP reduces
buckets in turn, each as soon as the backward pass has filled it (S. Li et al., "PyTorch Distributed", VLDB 2020).
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

Lines = Sequence[Sequence[str]]

GIGA, KILO, MEBI = 1e9, 1e3, 2**20
WORLDS = (8, 64, 1024)
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Interconnect:
    """Bytes a second that a GPU sends, and seconds that a message takes, within a node and across nodes.

    `efficiency` is the share of the wires' rate that a reduction reaches.
    """

    name: str
    within: float
    across: float
    within_latency: float = 3e-6
    across_latency: float = 5e-6
    efficiency: float = 0.8


H100 = Interconnect("NVLink 4 at 450 GB/s, one 400 Gbit/s InfiniBand card a GPU", 450 * GIGA, 50 * GIGA)
A100 = Interconnect("NVLink 3 at 300 GB/s", 300 * GIGA, 25 * GIGA)


@dataclass(frozen=True)
class Network:
    """A network in training on one GPU: parameters, films a step, and films a second."""

    name: str
    parameters: int
    batch: int
    rate: float

    @property
    def step_s(self) -> float:
        return self.batch / self.rate


@dataclass(frozen=True)
class Assumptions:
    """How a step runs: bytes of a gradient's value, bytes of DDP's bucket, and the backward pass's share of a step."""

    gradient_bytes: int = 4
    bucket: int = 25 * MEBI
    backward: float = 2 / 3


# Eager bf16 roofline on an H100 at 512 px, images/s: a step takes at least so long, so that what follows asks for the
# most input and leaves the least time to hide the reduction in.
RATES = {"se_resnext50_32x4d": 654.0, "se_resnext101_32x4d": 464.0, "senet154": 275.0}
# Bytes of a film of 1024 px, the upper end of what was seen; and a core's time to decode one, on an AMD EPYC.
FILM_BYTES = {"PNG": 480 * KILO, "JPEG": 175 * KILO}
PNG_DECODE_S = 7.3e-3
FILMS = 10_675  # the labelled films of the competition's first stage
BATCH = 16


def unet_parameters(encoder: str) -> int:
    """Count the parameters of a U-Net, without making them."""
    return _parameters(encoder, "")


def encoder_parameters(encoder: str) -> int:
    """Count the parameters of its encoder alone."""
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
    """Return the seconds in which `world` GPUs sum `size` bytes each."""
    local = min(world, GPUS_PER_NODE)
    nodes = math.ceil(world / GPUS_PER_NODE)
    within = 2 * (local - 1) * (size / local / (wires.within * wires.efficiency) + wires.within_latency)
    across = 2 * (nodes - 1) * (size / local / nodes / (wires.across * wires.efficiency) + wires.across_latency)
    return within + across


def exposed_s(network: Network, world: int, wires: Interconnect, assumed: Assumptions) -> float:
    """Return the seconds by which reductions outlast the backward pass beside which they run.

    The backward pass fills the buckets evenly; a bucket is reduced once it is full and the one before is done. The
    last one is full when the pass ends, so that it is never hidden.
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
    """Return how many times one GPU's rate `world` GPUs reach, each with the batch of one."""
    return world * network.step_s / (network.step_s + exposed_s(network, world, wires, assumed))


# --- what is printed


def reduction_table(networks: Sequence[Network], wires: Interconnect, assumed: Assumptions) -> list[list[str]]:
    """Return a line a network and world: all-reduce beside step, what is not hidden, and the speed that is left."""
    lines = [
        [
            *("U-Net", "GPUs", "step", "all-reduce, float32", "all-reduce, bf16", "not hidden, float32"),
            "speed-up",
        ]
    ]
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
                    f"{gained:,.1f} x ({gained / world:.1%})".replace("%", " %"),
                ]
            )
    return lines


def reduced_s(network: Network, world: int, wires: Interconnect, assumed: Assumptions) -> float:
    """Return the seconds of all buckets' reductions together."""
    gradient = network.parameters * assumed.gradient_bytes
    count = max(1, math.ceil(gradient / assumed.bucket))
    return count * all_reduce_s(gradient / count, world, wires)


def input_table(networks: Sequence[Network]) -> list[list[str]]:
    """Return a line a network and world: films a second, and what reading and decoding them asks for."""
    lines = [
        [
            *("U-Net", "GPUs", "films/s", *(f"{codec}, GB/s" for codec in FILM_BYTES), "cores a GPU to decode PNG"),
            f"steps in an epoch of {FILMS:,} films",
        ]
    ]
    for network in networks:
        for world in WORLDS:
            films = network.rate * world
            volumes = [f"{films * size / GIGA:.1f}" for size in FILM_BYTES.values()]
            cores, steps = network.rate * PNG_DECODE_S, FILMS // (network.batch * world)
            lines.append([network.name, f"{world:,}", f"{films:,.0f}", *volumes, f"{cores:.1f}", str(steps)])
    return lines


@dataclass(frozen=True)
class Published:
    """A published speed-up on 8 GPUs, and the network that it is of."""

    network: Network
    speedup: float
    source: str


def published() -> list[Published]:
    """Return NVIDIA's figures for a DGX A100, 8 x A100 80 GB, mixed precision (github.com/NVIDIA/DeepLearningExamples).

    Their rates are those of one GPU there. The batch of the first, which its table leaves out, is assumed, and so are
    the parameters of the nnU-Net: 40 million are more than it has.
    """
    classifier = 2048 * 1000 + 1000
    parameters = encoder_parameters("se_resnext101_32x4d") + classifier
    classification = Network("SE-ResNeXt101 32x4d, ImageNet, batch 128", parameters, 128, 855.0)
    segmentation = [
        (Network(f"nnU-Net 2D, batch {batch}", 40_000_000, batch, rate), found)
        for batch, rate, found in ((32, 1040.58, 7.45), (64, 1238.68, 7.60), (128, 1345.29, 7.95))
    ]
    return [
        Published(classification, 6.75, "PyTorch/Classification/ConvNets/se-resnext101-32x4d, container 21.03"),
        *(Published(network, found, "PyTorch/Segmentation/nnUNet, container 22.11") for network, found in segmentation),
    ]


def published_table(assumed: Assumptions) -> list[list[str]]:
    """Return a line a published figure: what the model gives for it, and how far off that is."""
    lines = [["published, 8 x A100", "speed-up", "this model", "the model is too high by"]]
    for each in published():
        found = speedup(each.network, 8, A100, assumed)
        off = found / each.speedup - 1
        lines.append([each.network.name, f"{each.speedup:.2f} x", f"{found:.2f} x", f"{off:.1%}".replace("%", " %")])
    return lines


def milli(seconds: float) -> str:
    """Return seconds as milliseconds."""
    return f"{seconds * 1e3:.2f} ms"


def markdown(lines: Lines) -> str:
    """Return lines, of which the first is the head, as a Markdown table."""
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plain(lines: Lines) -> str:
    """Return lines in columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=BATCH, help=f"films a GPU and step (default {BATCH})")
    parser.add_argument("--efficiency", type=float, default=0.8, help="share of the wires' rate (default 0.8)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as docs/scaling.md holds them")
    arguments = parser.parse_args()
    wires = Interconnect(H100.name, H100.within, H100.across, efficiency=arguments.efficiency)
    print("\n\n".join(sections(arguments.batch, wires, markdown if arguments.markdown else plain)))
    return 0


def sections(batch: int, wires: Interconnect, form: Callable[[Lines], str]) -> list[str]:
    """Return the tables as text."""
    assumed = Assumptions()
    networks = [Network(encoder, unet_parameters(encoder), batch, rate) for encoder, rate in RATES.items()]
    made = (reduction_table(networks, wires, assumed), input_table(networks), published_table(assumed))
    return [form(lines) for lines in made]


if __name__ == "__main__":
    sys.exit(main())
