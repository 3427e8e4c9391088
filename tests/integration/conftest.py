"""A tiny dataset and experiment, and the commands that users type."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]

Command = Callable[..., "subprocess.CompletedProcess[str]"]

TINY = {
    "name": "tiny",
    # Without the library of U-Nets, each process starts in half the time. `UNET` has it.
    "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": [8, 16, 32], "norm": True}},
    "image_size": 64,
    "global_batch": 4,
    "micro_batch": 1,
    "eval_batch": 3,
    "optim": {"lr": 1e-3, "clip_norm": 1.0, "ema_decay": 0.9},
    "top_k": 2,
    "save_every": 1,
    "stages": [
        {"name": "first", "epochs": 2, "sample_rate": 0.6, "schedule": {"name": "plateau", "patience": 0}},
        {"name": "second", "epochs": 1, "schedule": {"name": "cosine", "warmup_steps": 2}},
    ],
}

UNET = {
    "arch": "unet",
    "encoder": "tu-mobilenetv3_small_050",
    "in_channels": 1,
    "decoder_channels": [16, 16, 8, 8, 8],
}


def environment() -> dict[str, str]:
    """One thread per rank, and no rank variables of an outer launcher."""
    kept = {
        k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES"}
    }
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def launcher(ranks: int) -> list[str]:
    """Return the command before a script or `-m MODULE`: this Python, or torchrun with `ranks` ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *(torchrun if ranks > 1 else [])]


def module_command(*arguments: object, ranks: int = 1) -> list[str]:
    """Return `python -m …`, under torchrun if there are several ranks."""
    return [*launcher(ranks), "-m", *map(str, arguments)]


def run_module(*arguments: object, ranks: int = 1) -> "subprocess.CompletedProcess[str]":
    """Run a module to its end. The caller checks the exit code."""
    return subprocess.run(
        module_command(*arguments, ranks=ranks),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def must(result: "subprocess.CompletedProcess[str]") -> str:
    """Return the standard output of a command that must succeed."""
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def write_config(path: Path, **changes: object) -> Path:
    """Write the tiny experiment with changes at the top level."""
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def last_state(folder: Path) -> dict[str, object]:
    """Return the state of a stage's newest checkpoint."""
    state = torch.load(folder / "checkpoints" / "last", weights_only=True)
    assert isinstance(state, dict)
    return state


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four labelled and five test films as shards of 64 px, two folds, labels on a grid of 96 px."""
    folder = tmp_path_factory.mktemp("dataset")
    for name, count, seed in (("films", 24, 1), ("test", 5, 2)):
        must(
            run_module(
                "shards",
                "synth",
                folder / name,
                "--images",
                count,
                "--size",
                96,
                "--positive-rate",
                0.5,
                "--seed",
                seed,
            )
        )
    must(
        run_module(
            *("shards", "build", "--dicom", folder / "films/dicom-images", "--rle", folder / "films/train-rle.csv"),
            *("--test-dicom", folder / "test/dicom-images", "--out", folder / "shards"),
            *("--image-size", 64, "--folds", 2, "--workers", 1),
        )
    )
    return folder / "shards"
