"""Ranks of `benchmarks.trainer`, which starts one process group for each part.

    torchrun … -m benchmarks.trainer_worker {steps,saving,memory} SETTINGS.json

SETTINGS.json holds the path of the experiment and the counts; rank 0 writes its result to the path in `result`.
"""

import contextlib
import io
import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import memory_mib, step_times
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.ddp import wrap_ddp
from pneumo_dist.ranks.precision import autocast, resolve_amp
from pneumo_dist.ranks.ranks import Ranks, process_group
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.validation import ValidationFilms, validate
from shards.dataset.table import Shards

Settings = Mapping[str, Any]


def main() -> int:
    part, settings = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    with process_group(cpu=True) as ranks:
        result = PARTS[part](ranks, settings)
        if ranks.is_main:
            Path(settings["result"]).write_text(json.dumps(result))
    return 0


def steps(ranks: Ranks, settings: Settings) -> list[dict[str, list[float]]]:
    """Return the seconds of each step, by turn and loop, without the first steps; the loops alternate."""
    shards, experiment = inputs(settings)
    warm = int(settings["warm"])
    loops: dict[str, Callable[[], list[float]]] = {
        "trainer": lambda: trainer_times(ranks, shards, experiment, Path(settings["folder"]) / "run"),
        "bare": lambda: bare_times(ranks, shards, experiment),
    }
    turns = []
    for turn in range(settings["turns"]):
        order = list(loops)[:: 1 if turn % 2 == 0 else -1]
        turns.append({loop: durations(loops[loop]()[warm:]) for loop in order})
    return turns


def saving(ranks: Ranks, settings: Settings) -> list[list[float]]:
    """Return the seconds of each step, by turn; every `save_every`-th step writes a checkpoint."""
    shards, experiment = inputs(settings)
    folder = Path(settings["folder"]) / "run"
    return [durations(trainer_times(ranks, shards, experiment, folder)) for _ in range(settings["turns"])]


def inputs(settings: Settings) -> tuple[Shards, Experiment]:
    return Shards(Path(settings["shards"])), load_config(Path(settings["config"])).experiment


def durations(times: list[float]) -> list[float]:
    """Return the differences between successive times."""
    return [after - before for before, after in itertools.pairwise(times)]


def trainer_times(ranks: Ranks, shards: Shards, experiment: Experiment, folder: Path) -> list[float]:
    """Train in a new folder; return the time at which each step ended, on rank 0."""
    with contextlib.redirect_stdout(io.StringIO()):
        train_fold(FoldRun(experiment, 0, shards, folder, ranks), Experiment.model_dump_json)
    times = step_times(folder / experiment.stages[0].name) if ranks.is_main else []
    if ranks.is_main:
        shutil.rmtree(folder)
    ranks.gather_bytes(b"")  # no rank starts the next run until rank 0 has removed this one
    return times


def bare_times(ranks: Ranks, shards: Shards, experiment: Experiment) -> list[float]:
    """Train an epoch with a bare PyTorch loop; return the time at which each step ended.

    Network, input, loss, DDP, optimizer, clipping and autocast are those of the experiment.
    """
    stage, device = experiment.stages[0], ranks.device
    amp = resolve_amp(experiment.amp, device)
    torch.manual_seed(experiment.seed)
    model = build_model(experiment.model, pretrained=False).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=stage.optim.lr)
    shape = (stage.micro_batch, experiment.model.in_channels, stage.image_size, stage.image_size)
    network = wrap_ddp(model, ranks, torch.zeros(shape, device=device), amp)
    plan = EpochPlan(split_fold(shards, 0, stage.always_train), stage, experiment.seed, ranks.world)
    assert plan.accumulation == 1 and stage.optim.name == "adam" and stage.optim.clip_norm is not None
    input_spec = InputSpec(stage.image_size, experiment.model.in_channels, experiment.data, ranks.device_id)
    times = []
    for batch in itertools.islice(train_batches(shards, plan, input_spec, ranks.rank, 0, 0), plan.steps(0)):
        images, masks = (part.to(device, non_blocking=True) for part in (batch.images, batch.masks))
        with autocast(amp, device):
            logits = network(images)
        torch.autograd.backward(combo_loss(logits, masks, stage.loss)["loss"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), stage.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.time())
    return times


def memory(ranks: Ranks, settings: Settings) -> dict[str, float]:
    """Return the largest peak memory of any rank, in MiB, before and after the validation of the first `films`."""
    shards, experiment = inputs(settings)
    stage = experiment.stages[0]
    model = build_model(experiment.model, pretrained=False).to(ranks.device)
    rows = split_fold(shards, 0, stage.always_train).validation[: settings["films"]]
    assert len(rows) == settings["films"], "the fold has too few films"
    input_spec = InputSpec(stage.image_size, experiment.model.in_channels, experiment.data, ranks.device_id)
    loader = eval_loader(shards, rows, stage, input_spec, ranks.rank, ranks.world, with_mask=True)
    rounds = math.ceil(math.ceil(len(rows) / stage.eval_batch) / ranks.world)
    shown = frozenset(rows[:4].tolist())
    amp = resolve_amp(experiment.amp, ranks.device)
    before = memory_mib("VmHWM")
    validate(model, ValidationFilms(shards, loader, rounds, shown), stage.loss, ranks, amp)
    sizes = [json.loads(each) for each in ranks.gather_bytes(json.dumps([before, memory_mib("VmHWM")]).encode())]
    return dict(zip(("before", "after"), map(max, zip(*sizes, strict=True)), strict=True))


PARTS: dict[str, Callable[[Ranks, Settings], Any]] = {"steps": steps, "saving": saving, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())
