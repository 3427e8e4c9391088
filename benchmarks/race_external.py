"""Sides of benchmarks.race that are other tools: each runs in an environment of its own, on exported pictures."""

import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import ROOT
from benchmarks.race_clock import FACTS, load_facts
from benchmarks.race_films import DATASET, pictures_of, shards_of
from benchmarks.race_job import CORES, Job, run_logged
from benchmarks.race_score import Result, point_of
from shards.dataset.table import Shards

PROCESSES = {"nnUNet_n_proc_DA": str(CORES), "nnUNet_def_n_proc": str(CORES)}


def environment(work: Path, name: str, log: Path) -> Path:
    """Return the programs' folder of the environment for race-NAME.txt; make it if it is missing or out of date.

    A .pth file lets it see the packages of this interpreter, so that torch is not installed twice.
    """
    folder, pins = work / f"venv-{name}", Path(__file__).with_name(f"race-{name}.txt")
    stamp, current = folder / "pins.sha256", hashlib.sha256(pins.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == current:
        return folder / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    print(f"setting up {folder} ...", flush=True)
    run_logged([sys.executable, "-m", "venv", folder], log)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "race.pth").write_text("".join(f"{path}\n" for path in _packages()))
    install = ["-m", "pip", "install", "--disable-pip-version-check", "-r", pins]
    run_logged([folder / "bin/python", *install], log)
    stamp.write_text(current)
    return folder / "bin"


def _packages() -> list[Path]:
    """Return where this interpreter's packages are; a torch that the machine came with may lie elsewhere."""
    return list(dict.fromkeys(Path(str(each.__file__)).resolve().parents[1] for each in (np, torch)))


def run_lightning(job: Job) -> Result:
    """Train with Lightning, from the beginning."""
    programs = environment(job.work, "lightning", job.log)
    if not (job.folder / FACTS).exists():
        shutil.rmtree(job.folder, ignore_errors=True)
    options = ["--pictures", pictures_of(job.work), *(["--epochs", 2] if job.trial else [])]
    return run_module(job, programs, "benchmarks.race_lightning", options, {})


def run_nnunet(job: Job) -> Result:
    """Train nnU-Net, after its planning and preprocessing. An interrupted training goes on."""
    programs = environment(job.work, "nnunet", job.log)
    folders = {
        "nnUNet_raw": str(pictures_of(job.work)),
        "nnUNet_preprocessed": str(job.work / "nnunet-preprocessed"),
        "nnUNet_results": str(job.folder / "results"),
        **PROCESSES,
    }
    _preprocess(job, programs, folders)
    return run_module(job, programs, "benchmarks.race_nnunet", ["--every", 2] if job.trial else [], folders)


def _preprocess(job: Job, programs: Path, folders: Mapping[str, str]) -> None:
    """Plan and preprocess with nnU-Net's defaults, on the race's split."""
    folder = Path(folders["nnUNet_preprocessed"]) / DATASET
    if (folder / "done").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    command = [programs / "nnUNetv2_plan_and_preprocess", "-d", "501", "-c", "2d", "--verify_dataset_integrity"]
    run_logged([*command, "-npfp", CORES, "-np", CORES], job.log, folders)
    shutil.copyfile(Path(folders["nnUNet_raw"]) / DATASET / "splits_final.json", folder / "splits_final.json")
    (folder / "done").touch()


def run_module(
    job: Job, programs: Path, module: str, options: Sequence[object], variables: Mapping[str, str]
) -> Result:
    """Run a training module of the race, unless it has run to its end, and score the maps that it stored."""
    command = [programs / "python", "-m", module, "--out", job.folder, "--seed", job.seed, "--cap", job.cap, *options]
    if not (job.folder / FACTS).exists():
        run_logged(command, job.log, {"PYTHONPATH": str(ROOT), **variables}, threads=CORES)
    facts, shards = load_facts(job.folder / FACTS), Shards(shards_of(job.work))
    curve = tuple(point_of(path, shards) for path in sorted((job.folder / "maps").glob("*.npz")))
    mirrored = job.folder / "mirrored.npz"
    extra = {"at its end with mirrored views": point_of(mirrored, shards)[1]} if mirrored.exists() else {}
    rate = facts.films / facts.seconds
    return Result(job.side, job.seed, curve, rate, facts.settings, facts.versions, extra)
