"""Kill a small training at random moments, and count how often it ends with the same bits as one that is not killed.

    python -m tests.tools.soak --kills 20
    python -m tests.tools.soak --kills 20 --ranks 4 --seed 7

Run it from the root of the repository. Each run is killed after a random time (SIGKILL to the launcher and all its
ranks), and started again until it ends by itself. Then its newest and best checkpoints, summaries and logs are compared
with those of an uninterrupted run, with tolerance 0. The last line says how many were equal.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.phantom.dataset import synthesize

from .equality import run_differences

ROOT = Path(__file__).parents[2]
CONFIG = {
    "name": "soak",
    "model": {"arch": "unet", "encoder": "resnet18", "in_channels": 1, "decoder_channels": [16, 16, 8, 8, 8]},
    "image_size": 64,
    "global_batch": 8,
    "micro_batch": 1,
    "eval_batch": 3,
    "optim": {"lr": 1e-3, "clip_norm": 1.0, "ema_decay": 0.9},
    "augment": {"distortion": {"p": 0.5}},
    "top_k": 2,
    "save_every": 2,
    "stages": [
        {"name": "first", "epochs": 3, "sample_rate": 0.6, "schedule": {"name": "plateau", "patience": 0}},
        {"name": "second", "epochs": 2, "schedule": {"name": "cosine", "warmup_steps": 3}},
    ],
}
FOLD = "soak/fold0"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills in all (default 20)")
    parser.add_argument("--per-run", type=int, default=2, help="most kills of one run (default 2)")
    parser.add_argument("--ranks", type=int, default=2, help="default 2")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, help="folder to work in  [default: a temporary one]")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shards = _shards(work)
        config = work / "soak.yaml"
        config.write_text(yaml.safe_dump(CONFIG))
        started = time.monotonic()
        _finish(config, shards, work / "straight", arguments.ranks)
        length = time.monotonic() - started
        print(f"undisturbed: {length:.0f} s on {arguments.ranks} ranks", flush=True)
        chance = random.Random(arguments.seed)
        kills = runs = equal = 0
        while kills < arguments.kills:
            runs += 1
            done = _disturbed(config, shards, work / "killed", arguments, chance, length, arguments.kills - kills)
            kills += len(done)
            different = run_differences(work / "straight" / FOLD, work / "killed" / FOLD)
            equal += not different
            moments = ", ".join(f"{moment:.1f} s ({where})" for moment, where in done)
            print(f"run {runs}: killed after {moments}: {', '.join(different) or 'equal'}", flush=True)
    print(f"{equal} of {runs} runs equal after {kills} kills")
    return 0 if equal == runs else 1


def _disturbed(
    config: Path,
    shards: Path,
    out: Path,
    arguments: argparse.Namespace,
    chance: random.Random,
    length: float,
    left: int,
) -> list[tuple[float, str]]:
    """Kill and resume one run. Returns the time of each kill in seconds, and the run's position then."""
    shutil.rmtree(out, ignore_errors=True)
    done: list[tuple[float, str]] = []
    while len(done) < min(arguments.per_run, left):
        moment = chance.uniform(0.2, 1.0) * length
        code, killed = _run(config, shards, out, arguments.ranks, moment)
        if not killed:
            assert code == 0, _end_of_log(out)
            if not done:  # it was faster than the uninterrupted run: try again
                shutil.rmtree(out)
                continue
            break
        done.append((moment, _where(out)))
    _finish(config, shards, out, arguments.ranks)
    return done


def _finish(config: Path, shards: Path, runs: Path, ranks: int) -> None:
    """Train to the end without a kill."""
    code, _ = _run(config, shards, runs, ranks, None)
    assert code == 0, _end_of_log(runs)


def _end_of_log(runs: Path) -> str:
    return f"a run failed:\n{runs.with_suffix('.log').read_text()[-3000:]}"


def _shards(work: Path) -> Path:
    made = synthesize(work / "films", images=32, size=96, positive_rate=0.5, seed=1)
    sources = find_sources(FilmFolders(dicom=[made.dicom_dir]), LabelFiles(made.labels_csv))
    build(sources, work / "shards", BuildOptions(image_size=64, folds=2), b"a salt for the soak only")
    return work / "shards"


def _run(config: Path, shards: Path, runs: Path, ranks: int, moment: float | None) -> tuple[int, bool]:
    """Train, and kill after `moment` seconds. Returns the exit code, and whether it was killed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "pneumo_dist", "train", "--cpu", "--config", str(config), "--fold", "0"]
    command += ["--shards", str(shards), "--runs", str(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = runs.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            return process.wait(moment), False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    while _left(runs):
        time.sleep(0.05)
    return -signal.SIGKILL, True


def _left(runs: Path) -> bool:
    """Return whether a process of this run still exists. Ranks die shortly after their launcher."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(runs).encode() in path.read_bytes().split(b"\0"):
                return True
    return False


def _where(runs: Path) -> str:
    found = sorted((runs / FOLD).glob("*/checkpoints/*.pt"), key=lambda path: path.stat().st_mtime_ns)
    return f"{found[-1].parents[1].name} {found[-1].name[:13]}" if found else "no checkpoint"


if __name__ == "__main__":
    sys.exit(main())
