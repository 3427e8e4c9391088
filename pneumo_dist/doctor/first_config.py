"""A first config for a dataset: image size, network and batch that fit the films and the memory of a machine."""

from dataclasses import dataclass

import torch

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.fit import activation_bytes, meta_model
from pneumo_dist.ranks.precision import resolve_amp
from pneumo_dist.ranks.processes import available_memory
from shards.console import counted
from shards.dataset.table import Shards
from shards.errors import InputError

# Weights, gradients and Adam's two moments, in float32.
STATE_BYTES = 16
# Of activations in bf16 or fp16, compared with float32: 0.56 on an H100 (U-Net se_resnext50_32x4d, 512 px).
HALF = 0.6
# The rest is for the loader, fragments, cuDNN's workspaces and other programs.
USED = 0.7
LARGEST_BATCH, GLOBAL_BATCH, FEWEST_STEPS = 32, 16, 4
# With fewer positive films, an epoch draws as many positives as negatives.
OFTEN_POSITIVE = 0.4
LARGEST_SIDE = {"cpu": 256, "cuda": 1024}
# From the largest network down. On a CPU, the smallest trains in hours, the others in days.
ENCODERS = {"cpu": ("resnet18",), "cuda": ("se_resnext50_32x4d", "resnet34", "resnet18")}
# A larger network whose batch would be smaller than this makes way for a smaller one.
USEFUL_BATCH = 4


@dataclass(frozen=True)
class Fit:
    """A network and the films of a forward pass, with the bytes that training them takes."""

    model: ModelConfig
    batch: int
    bytes: int


def fit(device: str, memory: int, side: int, is_half: bool) -> Fit:
    """Return the largest network and batch that train in `memory` bytes.

    Raises InputError if not even the smallest network fits with one film.
    """
    found = None
    for encoder in ENCODERS[device]:
        config = ModelConfig(encoder=encoder, encoder_weights="imagenet" if device == "cuda" else None)
        model = meta_model(config)
        state = STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())
        film = int(activation_bytes(model, config.in_channels, side) * (HALF if is_half else 1))
        films = int((USED * memory - state) // film)
        if films < 1:
            continue
        batch = min(LARGEST_BATCH, 2 ** (films.bit_length() - 1))
        found = Fit(config, batch, state + batch * film)
        if batch >= USEFUL_BATCH:
            return found
    if found is None:
        raise InputError(f"{memory / 2**30:.1f} GiB of memory are too little to train at {side} px; free some memory")
    return found


def first_config(shards: Shards, name: str, cpu: bool) -> str:
    """Return the text of a commented config for a dataset on this machine. Raises InputError if nothing fits."""
    device = "cpu" if cpu or not torch.cuda.is_available() else "cuda"
    memory = available_memory() if device == "cpu" else torch.cuda.mem_get_info(0)[0]
    side = min(LARGEST_SIDE[device], shards.manifest["arguments"]["image_size"]) // 32 * 32
    found = fit(device, memory, side, resolve_amp("auto", torch.device(device)) != "float32")
    films = min((len(shards.fold_rows(fold, always_train=False)[0]) for fold in shards.folds()), default=0)
    ranks = 1 if device == "cpu" else torch.cuda.device_count()
    batch, whole = batches(found.batch, films, ranks)
    share = float(shards.column("has_mask")[shards.indices("train")].mean())
    rate = 0.5 if share < OFTEN_POSITIVE else None
    where = "the CPU" if device == "cpu" else torch.cuda.get_device_name(0)
    lines = [
        (f"name: {name}", "also its folder below RUNS"),
        ("model:", ""),
        ("  arch: unet", ""),
        (f"  encoder: {found.model.encoder}", ""),
        (
            f"  encoder_weights: {found.model.encoder_weights or 'null'}",
            "imagenet is downloaded once; null: random weights",
        ),
        (f"image_size: {side}", "side of the network's input, in pixels"),
        (f"global_batch: {whole}", "films per optimizer step, over all ranks"),
        (f"micro_batch: {batch}", "films per rank and forward pass; lower it if memory runs out"),
        (f"eval_batch: {batch}", "films per forward pass in validation and prediction"),
        (f"sample_rate: {rate or 'null'}", f"share of positive films in an epoch; the dataset has {share:.0%}"),
        ("optim: {name: adam, lr: 3.0e-4, clip_norm: 1.0}", ""),
        ("schedule: {name: cosine, min_lr: 1.0e-6}", ""),
        ("loss: {bce: 1, dice: 1, focal: 1}", "weights of the terms"),
        ("top_k: 3", "checkpoints to keep, the best ones"),
        ("stages:", ""),
        ("  - name: main", ""),
        ("    epochs: 30", ""),
    ]
    body = "\n".join(f"{text:<36}# {comment}" if comment else text for text, comment in lines)
    needed = f"{found.bytes / 2**30:.1f} GiB at micro_batch {found.batch}"
    return (
        f"# Written by init-config for {counted(ranks, 'rank')} on {where} with {memory / 2**30:.1f} GiB free.\n"
        f"# A step takes about {needed}. The smallest fold trains on {films} films.\n"
        f"# docs/config.md explains all keys.\n{body}\n"
    )


def batches(fitting: int, films: int, ranks: int) -> tuple[int, int]:
    """Return micro_batch and global_batch: no more than memory and a few steps per epoch allow, for some ranks."""
    batch = fitting
    while batch > 1 and batch * ranks * FEWEST_STEPS > films:
        batch //= 2
    step = batch * ranks
    wanted = min(GLOBAL_BATCH, max(1, films // FEWEST_STEPS))
    return batch, step * max(1, wanted // step)
