"""The commands of a small chain, from films to segmented films, and the files that they write.

Every round works in the same folder, because some files contain paths.
"""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import yaml
from pydicom.errors import InvalidDicomError

from pneumo_dist.train.epoch_log import MEASURED

ROOT = Path(__file__).parents[3]
RANKS = 2
WATCHDOG_SECONDS, START_SECONDS = 30.0, 60.0
CONFIG: dict[str, Any] = {
    "name": "chain",
    "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": [4, 8, 8], "norm": True}},
    "image_size": 64,
    "global_batch": 4,
    "micro_batch": 1,
    "eval_batch": 3,
    "optim": {"lr": 1e-2, "clip_norm": 1.0, "ema_decay": 0.9},
    "augment": {"distortion": {"p": 0.5}},
    "runtime": {"watchdog_minutes": WATCHDOG_SECONDS / 60, "start_minutes": START_SECONDS / 60},
    "top_k": 2,
    "save_every": 2,
    "stages": [
        {"name": "first", "epochs": 2, "sample_rate": 0.6, "schedule": {"name": "plateau", "patience": 0}},
        {"name": "again", "epochs": 1, "repeat": "until_no_gain", "schedule": {"name": "cosine", "warmup_steps": 1}},
        {"name": "last", "epochs": 2, "optim": {"lr": 1e-3, "ema_decay": None, "swa_epochs": 1}},
    ],
}
# It learns from films without labels by the maps of the last stage above, and by a mean teacher.
STUDENT: dict[str, Any] = {
    **{
        key: CONFIG[key] for key in ("model", "image_size", "global_batch", "eval_batch", "optim", "augment", "runtime")
    },
    "name": "student",
    "micro_batch": 2,
    "save_every": 2,
    "unlabelled": {"from": "chain/last", "share": 0.5, "mean_teacher": {"ramp_up_epochs": 1}},
    "stages": [{"name": "only", "epochs": 3}],
}
# Logs contain speeds and times, and the events of a resumed run are in several files.
EVENTS = "tensorboard"
LOCKS = ("lock", ".pneumo_dist.lock")
# The tables that processes share (shards.dataset.mapped) stay for the next command.
TABLES = f"pneumo_dist-tables-{os.getuid()}"


@dataclass(frozen=True)
class Step:
    """A command of the chain.

    Attributes:
        ranks: Number of ranks; 0 for a command without ranks.
        inputs: Patterns of files that it reads and that have a digest.
        is_training: Whether it trains a fold.
        experiment: The experiment that it works on.
    """

    name: str
    arguments: tuple[str, ...]
    ranks: int = 0
    inputs: tuple[str, ...] = ()
    is_training: bool = False
    experiment: str = "chain"

    @property
    def kind(self) -> str:
        """The name without a number or a split: build, finalize, append, train, …"""
        return self.name.partition("-")[0]

    def command(self, ranks: int | None = None, script: Path | None = None) -> list[str]:
        """Return the command line, on another number of ranks or by another script if one is given."""
        count = self.ranks if ranks is None else ranks
        run = [str(script), *self.arguments[1:]] if script else ["-m", *self.arguments]
        if count < 2:
            return [sys.executable, *run]
        agent = ["-m", "pneumo_dist.ranks.agent", "--standalone", "--local-addr", "127.0.0.1"]
        return [sys.executable, *agent, "--nproc-per-node", str(count), *run]


def chain(folder: Path) -> list[Step]:
    """Return the commands in their order. `folder` has the films and the config of `prepare`."""
    shards, runs, config, out = (str(folder / name) for name in ("shards", "runs", "chain.yaml", "out"))
    bundle = f"{out}/chain.bundle"
    films = ("--dicom", str(folder / "films/dicom-images"), "--rle", str(folder / "films/train-rle.csv"))
    test = ("--test-dicom", str(folder / "test/dicom-images"))
    more = ("--dicom", str(folder / "more/dicom-images"), "--rle", str(folder / "more/train-rle.csv"))
    sizes = ("--image-size", "64", "--samples-per-shard", "4", "--workers", "2", "--out", shards)
    without = ("--unlabelled-dicom", str(folder / "without/dicom-images"))
    build = ("shards", "build", *films, *test, *without, *sizes, "--folds", "2")
    common = ("--config", config, "--runs", runs)
    data = ("--shards", shards)
    tars, stored = ("shards/*.tar",), ("runs/chain/oof/predictions/*.tar",)
    tests, trained = ("runs/chain/test/predictions/*.tar",), ("runs/chain/fold*/last/checkpoints/*.pt",)
    train = [
        Step(
            f"train-{fold}",
            ("pneumo_dist", "train", "--cpu", *common, *data, "--fold", str(fold)),
            RANKS,
            (*tars, "cache/*.tar"),
            is_training=True,
        )
        for fold in (0, 1)
    ]
    predict = [
        Step(
            f"predict-{split}",
            ("pneumo_dist", "predict", "--cpu", *common, *data, "--split", split, "--block", "5"),
            RANKS,
            (*tars, *trained),
        )
        for split in ("oof", "test", "unlabelled")
    ]
    first = f"{runs}/first"
    candidate = ("--split", "oof", "--top-k", "1", "--no-hflip", "--out", f"{first}/oof/predictions", "--block", "5")
    learn = ("pneumo_dist", "train", "--cpu", "--config", str(folder / "student.yaml"), "--runs", runs, *data)
    maps = "runs/chain/unlabelled/last/fold0/predictions/*.tar"
    return [
        *(Step(f"build-{task}", (*build, "--task", f"{task}/3")) for task in (1, 2, 3)),
        Step("finalize", ("shards", "finalize", shards, "--folds", "2"), inputs=tars),
        Step("append", ("shards", "build", *more, *sizes, "--append"), inputs=tars),
        *train,
        *predict,
        Step(
            "learn-0",
            (*learn, "--fold", "0"),
            RANKS,
            (*tars, maps),
            is_training=True,
            experiment="student",
        ),
        Step("tune", ("pneumo_dist", "tune", *common, "--joint"), inputs=stored),
        Step(
            "predict-first", ("pneumo_dist", "predict", "--cpu", *common, *data, *candidate), RANKS, (*tars, *trained)
        ),
        Step(
            "select",
            ("pneumo_dist", "select", f"{runs}/chain", first, "--steps", "3", "--out", f"{out}/selected.yaml"),
            inputs=(*stored, "runs/first/oof/predictions/*.tar"),
        ),
        Step("submit", ("pneumo_dist", "submit", *common), inputs=(*tests, "runs/chain/oof/thresholds.json")),
        Step("report", ("pneumo_dist", "report", *common, *data), inputs=(*stored, *tars)),
        Step("average", ("pneumo_dist", "average", "--cpu", *common, *data, "--bundle", bundle), inputs=trained),
        Step(
            "segment",
            (
                "pneumo_dist",
                "segment",
                "--cpu",
                f"{folder}/test/dicom-images",
                "--bundle",
                bundle,
                "--out",
                f"{out}/masks",
            ),
            inputs=("out/chain.bundle",),
        ),
    ]


def prepare(folder: Path) -> list[list[str]]:
    """Write the config, and return the commands that make the films."""
    (folder / "tmp").mkdir(parents=True)
    for config in (CONFIG, STUDENT):
        data = {"threads": 1, "cache_dir": str(folder / "cache")}
        (folder / f"{config['name']}.yaml").write_text(yaml.safe_dump({**config, "data": data}))
    # All tasks of a build share the salt, so it is made before the first one starts.
    (folder / "shards.salt").write_bytes(b"a salt for the judge, 32 bytes..")
    (folder / "shards.salt").chmod(0o600)
    sets = (("films", 24, 1), ("more", 4, 2), ("test", 5, 3), ("without", 8, 4))
    synth = [sys.executable, "-m", "shards", "synth"]
    return [
        [
            *synth,
            str(folder / name),
            "--images",
            str(count),
            "--size",
            "96",
            "--positive-rate",
            "0.5",
            "--seed",
            str(seed),
        ]
        for name, count, seed in sets
    ]


def inventory(folder: Path) -> dict[str, str]:
    """Return the digest of each file below a folder, by its relative path.

    A link counts with its target, and an empty folder as itself. Of a log, what does not depend on speed counts, and
    of a DICOM segmentation its pixels.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if EVENTS in path.parts or TABLES in path.parts:
            continue
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = "a lock, which names its holder" if path.name in LOCKS else _digest(path)
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = "an empty folder"
    return found


def _digest(path: Path) -> str:
    try:
        if path.name in _LOGS:
            content = json.dumps(_LOGS[path.name](path.read_text().splitlines())).encode()
        else:
            content = _mask(path) if path.name.endswith(".seg.dcm") else path.read_bytes()
    except (ValueError, KeyError, InvalidDicomError) as error:
        return f"unreadable: {error}"
    return hashlib.sha256(content).hexdigest()


def _mask(path: Path) -> bytes:
    """Return the pixels and the source of a DICOM segmentation. Its own identifiers and dates are new in every run."""
    found = pydicom.dcmread(path)
    source = found.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
    return bytes(found.PixelData) + str(source).encode()


def _summary(lines: Sequence[str]) -> Any:
    return [{name: row[name] for name in row if name not in MEASURED} for row in csv.DictReader(lines)]


def _metrics(lines: Sequence[str]) -> Any:
    return [{name: value for name, value in json.loads(line).items() if name not in MEASURED} for line in lines]


def _heartbeat(lines: Sequence[str]) -> Any:
    return {name: json.loads(lines[0])[name] for name in ("state", "stage", "epoch", "epochs", "step")}


_LOGS = {"metrics.jsonl": _metrics, "summary.csv": _summary, "heartbeat.json": _heartbeat}
