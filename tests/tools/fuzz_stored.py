"""Edit stored files: each must give the right answer or a clear refusal.

    python -m tests.tools.fuzz_stored --count 5000 --seed 1
    python -m tests.tools.fuzz_stored --seed 1 --case 1234          repeat one case, with its traceback

Every case is a function of the seed and its number. It changes one value in a file of tests/fixtures (a bundle,
predictions, a sample table, a checkpoint, thresholds, a config, a log), updates the digest if the file has one, and
reads it as the commands do. It passes if that raises InputError, gives the answer of the unedited file or, for a value
that a writer could have written, any complete answer. It fails if a value that no writer writes is accepted, or if any
other exception is raised. Failures are printed with the command that repeats them, and the exit code is 1.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
import yaml

from pneumo_dist.config.ensemble import EnsembleConfig, load_either
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.model import FcnConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.data.plan import fixed_batches
from pneumo_dist.maps.store import open_predictions
from pneumo_dist.network.build import build_model
from pneumo_dist.output.submission import submission_rows, write_submission
from pneumo_dist.predict.bundle import read_bundle
from pneumo_dist.predict.bundle_content import FORMAT_VERSION, from_version_1
from pneumo_dist.predict.ensemble import NetworkInput, read_network
from pneumo_dist.predict.forward import NetworkCache, predict_films
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import StopAgreement
from pneumo_dist.report.inputs import read_history
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.heartbeat import Heartbeat
from pneumo_dist.runs.status import read_status, table
from pneumo_dist.thresholds.choose import run_thresholds
from pneumo_dist.thresholds.file import read_scores
from pneumo_dist.thresholds.tune import film_measures
from pneumo_dist.train.services import Services
from pneumo_dist.train.stage import StageRun
from pneumo_dist.train.start import Trained, find_start
from shards.build.assemble import finalize
from shards.dataset.manifest import MANIFEST
from shards.dataset.table import TABLE, Shards, save_table
from shards.dataset.verify import verify
from shards.errors import InputError
from shards.files import sha256_file

from .edits import MISSING, Edit, edit, places

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures/e2bae37"
ALONE = Ranks.alone()
Answer = Any


class Wrong(AssertionError):
    """An answer that is neither right nor a refusal."""


@dataclass(frozen=True)
class Case:
    """A case's copies of the files, the unedited shards, and random numbers."""

    files: Path
    shards: Shards
    rng: np.random.Generator


def changed_json(path: Path, rng: np.random.Generator) -> Edit:
    """Change one value of a JSON file."""
    tree, made = edit(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(tree))
    return made


def changed_table(path: Path, rng: np.random.Generator) -> Edit:
    """Change one value, column or row of a table."""
    found = pq.read_table(path)
    rows, schema = found.to_pylist(), found.schema
    kind = rng.integers(8)
    name = schema.names[int(rng.integers(len(schema.names)))]
    row = int(rng.integers(len(rows)))
    if kind == 0:
        made, new = Edit((name,), MISSING, True), found.drop_columns([name])
    elif kind == 1:
        made, new = Edit((row,), "twice", True), pa.concat_tables([found, found.slice(row, 1)])
    elif kind == 2:
        made, new = Edit((row,), MISSING, True), pa.concat_tables([found.slice(0, row), found.slice(row + 1)])
    elif kind == 3:
        made, new = Edit((), "no rows", True), found.slice(0, 0)
    elif kind == 4:
        texts = pa.array(
            [None if value is None else str(value) for value in found[name].to_pylist()], pa.large_string()
        )
        made, new = Edit((name,), "text", True), found.set_column(schema.get_field_index(name), name, texts)
    else:
        before = rows[row][name]
        values = [None, -1, 0, 1, 2**31 - 1, 2**62, float("nan"), 1e30, "", "x", "../x", "1 2", "-1", "\0"]
        value: Any = values[int(rng.integers(len(values)))]
        rows[row] = {**rows[row], name: value}
        loose = pa.schema([pa.field(field.name, field.type) for field in schema])
        try:
            new = pa.Table.from_pylist(rows, schema=loose)
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            return changed_table(path, rng)  # no value of the column's type
        made = Edit((row, name), value, value != before and value in (None, -1, 2**62) and before is not None)
    save_table(path, new)
    return made


def signed(folder: Path, table_name: str, key: str) -> None:
    """Enter a table's digest in its manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if isinstance(manifest, dict):
        (folder / MANIFEST).write_text(json.dumps({**manifest, key: sha256_file(folder / table_name)}))


# --- edits and reads; each returns the edit and a function that gives the answer


def bundle(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """A bundle: its JSON or one of its tensors; the answer is the maps of three films and the rule."""
    path = case.files / "finished.bundle"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    method = zipfile.ZIP_STORED
    if case.rng.random() < 0.6:
        content = json.loads(members["bundle.json"])  # of version 1
        if case.rng.random() < 0.5:
            content = {**json.loads(from_version_1(content)), "format_version": FORMAT_VERSION}
        tree, made = edit(content, case.rng)
        members["bundle.json"] = json.dumps(tree).encode()
        if made.place[0] in ("scores", "version"):
            made = Edit(made.place, made.value, False)
    elif case.rng.random() < 0.15:
        method, made = zipfile.ZIP_DEFLATED, Edit(("zip",), "deflated", True)
    elif case.rng.random() < 0.2:
        name = list(members)[int(case.rng.integers(len(members) - 1))]
        del members[name]
        made = Edit((name,), MISSING, True)
    else:
        weights, made = changed_tensors(
            safetensors.torch.load(members["weights/000.safetensors"]), case.rng, saved=True
        )
        members["weights/000.safetensors"] = safetensors.torch.save(weights)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)

    def answer() -> Answer:
        ensemble, rule = read_bundle(path)
        batches = fixed_batches(np.arange(3), ensemble.eval_batch)

        def read(each: NetworkInput) -> Iterator[Batch]:
            image = cv2.resize(pictures()[0], (each.image_size,) * 2)
            image = (image / 255 - each.mean[0]) / each.std[0]
            stack = np.repeat(image[None, None], each.in_channels, 1).astype(np.float32)
            return (Batch(torch.from_numpy(np.repeat(stack, len(rows), 0)), torch.zeros(0), rows) for rows in batches)

        cache = NetworkCache(ensemble, ALONE, size=4, unseen=None)
        films = {each: read(each) for each in ensemble.inputs}
        found = predict_films(batches, films, ensemble.networks, cache).on_host()
        if len(found.rows) != 3 or found.maps.shape != (3, ensemble.image_size, ensemble.image_size):
            raise Wrong("films are missing")
        return found.maps.tobytes(), rule

    return made, answer


def pictures() -> list[np.ndarray]:
    """Random films."""
    y, x = np.mgrid[0:64, 0:64]
    return [np.rint(120 + 60 * np.sin(x / 7) * np.cos(y / 9)).astype(np.float32)]


def changed_tensors(
    weights: dict[str, torch.Tensor], rng: np.random.Generator, saved: bool = False
) -> tuple[dict[str, torch.Tensor], Edit]:
    """Change one tensor. `saved` if its file holds whole arrays only."""
    name = list(weights)[int(rng.integers(len(weights)))]
    value = weights[name]
    others: dict[str, Callable[[], torch.Tensor]] = {
        "nan": lambda: torch.full_like(value.float(), float("nan")),
        "inf": lambda: torch.full_like(value.float(), float("inf")),
        "half": lambda: value.half(),
        "whole": lambda: value.to(torch.int32) if value.is_floating_point() else value.float(),
        "flat": lambda: value.reshape(-1, 1, 1),
        "none of it": lambda: value.reshape(-1)[:0].clone(),
        "twice": lambda: torch.cat([value.reshape(-1), value.reshape(-1)]),
    }
    if not saved:
        others["bomb"] = lambda: torch.zeros(1).expand(10**6, 10**6)
        others["sparse"] = lambda: value.reshape(-1).float().to_sparse()
        others["text"] = lambda: "weights"  # type: ignore[assignment, return-value]
    kind = [*others, "left out", "renamed", "more", "no tensors"][int(rng.integers(len(others) + 4))]
    if kind == "left out":
        rest = {key: each for key, each in weights.items() if key != name}
    elif kind == "renamed":
        rest = {f"{key}x" if key == name else key: each for key, each in weights.items()}
    elif kind == "more":
        rest = {**weights, "unheard_of": torch.ones(2)}
    elif kind == "no tensors":
        rest = {}
    else:
        rest = {**weights, name: others[kind]()}
    return rest, Edit((name,), kind, True)


def predictions(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """Stored predictions: manifest, table or a map; the answer is the submission, or the histograms of tuning."""
    split = ("test", "oof")[int(case.rng.integers(2))]
    folder = case.files / f"runs/finished/{split}/predictions"
    kind = case.rng.random()
    if kind < 0.35:
        made = changed_json(folder / MANIFEST, case.rng)
        if made.place[0] in ("experiment", "dataset", "parts", "tta", "split"):
            made = Edit(made.place, made.value, False)  # for readers: no mask depends on them
    elif kind < 0.8:
        made = changed_table(folder / "predictions.parquet", case.rng)
        signed(folder, "predictions.parquet", "predictions_sha256")
        made = _for_people(made, ("image_id", "group", "split", "fold", "class_probability"))
        if split == "test":
            made = _for_people(made, ("rle",))
    else:
        made = changed_map(folder, case.rng)
        signed(folder, "predictions.parquet", "predictions_sha256")
    rule = run_thresholds(FIXTURES / "runs/finished").rule("components").rule

    def answer() -> Answer:
        found = open_predictions(folder)
        if split == "test":
            rows = submission_rows(found, rule)
            write_submission(case.files / "submission.csv", rows, None)
            written = list(csv.reader((case.files / "submission.csv").open()))[1:]
            if len(written) != len(found) or len(found) != 3:
                raise Wrong("films are missing")
            return sorted(rows.values())
        histograms, _ = film_measures(found, ALONE, 0.5)
        if len(histograms) != 12:
            raise Wrong("films are missing")
        return histograms.tobytes()

    return made, answer


def _for_people(made: Edit, names: tuple[str, ...]) -> Edit:
    is_value = len(made.place) == 2
    return Edit(made.place, made.value, False) if is_value and made.place[1] in names else made


def changed_map(folder: Path, rng: np.random.Generator) -> Edit:
    """Replace the bytes of a map by at most as many others, and update their size and checksum in the table."""
    found = pq.read_table(folder / "predictions.parquet")
    rows = found.to_pylist()
    row = rows[int(rng.integers(len(rows)))]
    kinds = {
        "bomb": cv2.imencode(".png", np.zeros((8192, 8192), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes(),
        "small": cv2.imencode(".png", np.zeros((32, 32), np.uint8))[1].tobytes(),
        "wide": cv2.imencode(".png", np.zeros((32, 64), np.uint8))[1].tobytes(),
        "text": b"no picture",
        "head": (folder / row["tar"]).read_bytes()[row["offset"] : row["offset"] + 40],
    }
    kind = list(kinds)[int(rng.integers(len(kinds)))]
    content = bytearray((folder / row["tar"]).read_bytes())
    content[row["offset"] : row["offset"] + len(kinds[kind])] = kinds[kind]
    (folder / row["tar"]).write_bytes(content)
    row |= {"size": len(kinds[kind]), "crc32": zlib.crc32(kinds[kind])}
    save_table(folder / "predictions.parquet", pa.Table.from_pylist(rows, schema=found.schema))
    return Edit((row["key"],), kind, True)


def samples(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """A dataset: its manifest or its table. If verify finds no fault, the answer is every member and label."""
    folder = case.files / "shards"
    if case.rng.random() < 0.4:
        made = changed_json(folder / MANIFEST, case.rng)
        if made.place[0] in ("counts", "arguments", "salt_check", "build_digest", "codec", "image_size", "doubts"):
            made = Edit(made.place, made.value, False)  # describes the build, not its films
    else:
        made = changed_table(folder / TABLE, case.rng)
        signed(folder, TABLE, "table_sha256")
        about = ("image_id", "group", "film_group", "perceptual_hash", "view", "sex", "age", "spacing_row")
        made = _for_people(made, (*about, "spacing_column", "spacing_tag"))
    given = {"folds": int(case.rng.integers(2, 4))} if case.rng.random() < 0.3 else None

    def answer() -> Answer:
        faults = verify(folder)
        if faults:
            raise InputError(faults[0])
        shards = Shards(folder)
        if len(shards) != 15:
            raise Wrong("films are missing")
        labels = [shards.column(name).tolist() for name in ("key", "rle", "split", "fold", "has_mask", "mask_area")]
        content = [shards.read(row, member) for row in range(len(shards)) for member in ("image", "json")]
        if given:
            finalize(folder, given, b"a salt for fuzzing only", max_rejects=100)
        return labels, content, [shards.grid(row) for row in range(len(shards))]

    return made, answer


def checkpoint(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """A checkpoint with a new digest. The answer is its network, or the state with which training continues."""
    resumes = bool(case.rng.random() < 0.6)
    run = case.files / "runs/unfinished/fold0"
    folder = run / "second/checkpoints"
    files = sorted(folder.glob("step-*.pt"))
    state = torch.load(files[-1], map_location="cpu", weights_only=True)
    if case.rng.random() < 0.7:
        outer = {name: value for name, value in state.items() if name not in ("model", "averaged")}
        inside = ("optimizer", "schedule", "position", "lineage", "history", None, None)[int(case.rng.integers(7))]
        if inside is not None and places(outer[inside]):
            part, made = edit(outer[inside], case.rng)
            made = Edit((inside, *made.place), made.value, made.is_absurd)
            outer[inside] = part
        else:
            outer, made = edit(outer, case.rng)
        state = {**outer, "model": state["model"], "averaged": state["averaged"]}
        if made.place[0] in ("experiment", "version", "source", "metrics_bytes", "world") or not resumes:
            made = Edit(
                made.place, made.value, False
            )  # another config is refused by name, and a network has no history
    else:
        part = ("model", "averaged")[int(case.rng.integers(2))] if resumes else "averaged"
        state[part], made = changed_tensors(state[part], case.rng)
        made = Edit((part, *made.place), made.value, True)
    for file in files:
        file.unlink()
    torch.save(state, folder / "new")
    digest = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:16]
    path = (folder / "new").rename(folder / f"step-00000002-{digest}.pt")

    def answer() -> Answer:
        if not resumes:
            network = read_network(path)
            model = network.build(path.name)
            with torch.no_grad():
                found = model(torch.from_numpy(pictures()[0])[None, None] / 255)
            return found.numpy().tobytes(), network.amp
        return went_on(case, run)

    return made, answer


def went_on(case: Case, run: Path) -> Answer:
    """Return the state of a stage resumed from its newest checkpoint, after an optimizer step without a gradient."""
    experiment = load_either(FIXTURES / "unfinished.yaml")
    assert isinstance(experiment, Experiment)
    with StopAgreement(ALONE) as stop:
        first, stage = experiment.stages[:2]
        fold_run = FoldRun(experiment, 0, case.shards, run, ALONE)
        files = [fold_run.checkpoints(each.name).recover() for each in (first, stage)]
        newest = [file.path if file else None for file in files]
        before = find_start(fold_run, first, first, newest[0], None, [])
        history = before.state["history"] if before.state else []
        trained = Trained(fold_run.checkpoints("first"), history, before.lineage)
        start = find_start(fold_run, stage, stage, newest[1], trained, [])
        if start.state is None:
            raise Wrong("begins again")
        stage_run = StageRun(fold_run, Services(stop, Heartbeat(None, {})), stage, start)
        stage_run.monitor.close()
        learner = stage_run.learner
        for parameter in learner.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        learner.optimizer.step()
        learner.end_epoch(0.5, 0.5)
        numbers = [value for value in learner.model.state_dict().values() if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in numbers):
            raise Wrong("weights that are no numbers")
        content = {name: value.tolist() for name, value in learner.evaluated.state_dict().items()}
        schedule = {name: value for name, value in learner.schedule.state_dict().items() if not name.startswith("_")}
        return json.dumps([content, schedule, vars(stage_run.position), stage_run.history], default=str)


def thresholds(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """thresholds.json: the answer is its rules."""
    made = changed_json(case.files / "runs/finished/oof/thresholds.json", case.rng)
    told = ("score", "folds", "dice", "called_positive", "positives_given_up_by_area", "plateau", "by_size", "patients")
    # A rule without data to tune it on is null or left out.
    is_nothing = made.value is None and made.place[0] in MAY_BE_NULL
    is_nothing |= made.value is MISSING and made.place == ("rules", "components")
    if made.place[0] in (*told, "experiment") or is_nothing:
        made = Edit(made.place, made.value, False)

    def answer() -> Answer:
        found = run_thresholds(case.files / "runs/finished")
        scores = read_scores(case.files / "runs/finished/oof/thresholds.json")
        return str((found.objective, found.rules, found.unseen, found.digest)), scores["score"]["films"]

    return made, answer


MAY_BE_NULL = ("dice_tuned_on_other_folds", "components_curve")
ENSEMBLE = {
    "name": "blend",
    "members": [{"experiment": "finished", "folds": [0, 1], "checkpoints": "top-k", "top_k": 1, "weight": 1.0}],
    "tta": {"hflip": True, "scales": [1.0, 1.5]},
    "image_size": 64,
    "eval_batch": 4,
    "thresholds": {"top": 0.5, "area": 100, "bottom": 0.4},
    "smallest_part": 30,
}


def config(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """An experiment or an ensemble: missing keys have their defaults, all others their values."""
    is_ensemble = bool(case.rng.random() < 0.4)
    tree = ENSEMBLE if is_ensemble else yaml.safe_load((FIXTURES / "runs/finished/fold0/config.yaml").read_text())
    tree, made = edit(tree, case.rng)
    path = case.files / "edited.yaml"
    path.write_text(yaml.safe_dump(tree))
    if made.value in (MISSING, None, "1") or isinstance(made.value, dict | list):
        made = Edit(made.place, made.value, False)  # defaults; a list or a mapping if one is expected

    def answer() -> Answer:
        found = load_either(path)
        if isinstance(found, EnsembleConfig):
            return found.model_dump_json()
        if found.model.arch == "fcn" and max((found.model.fcn or FCN).widths) <= 64:
            build_model(found.model, pretrained=False)
        return found.model_dump_json()

    return made, answer


def logs(case: Case) -> tuple[Edit, Callable[[], Answer]]:
    """heartbeat.json and metrics.jsonl: `status` always prints its table, and the report may refuse the curves."""
    fold = case.files / "runs/finished/fold0"
    if case.rng.random() < 0.5:
        made = changed_json(fold / "heartbeat.json", case.rng)
    else:
        path = fold / "first/metrics.jsonl"
        lines = path.read_text().splitlines()
        tree, made = edit(json.loads(lines[-1]), case.rng)
        path.write_text("\n".join([*lines[:-1], json.dumps(tree)]) + "\n")

    def answer() -> Answer:
        if len(table(read_status(case.files / "runs", time.time()))) != 4:
            raise Wrong("a fold is missing")
        return str(read_history(case.files / "runs/finished"))

    return Edit(made.place, made.value, False), answer


FCN = FcnConfig()
TARGETS: tuple[tuple[Callable[[Case], tuple[Edit, Callable[[], Answer]]], tuple[str, ...], float], ...] = (
    (bundle, ("finished.bundle",), 0.25),
    (predictions, ("runs",), 0.2),
    (samples, ("shards",), 0.15),
    (checkpoint, ("runs",), 0.15),
    (thresholds, ("runs",), 0.1),
    (config, (), 0.1),
    (logs, ("runs",), 0.05),
)


def copied(names: tuple[str, ...], folder: Path) -> None:
    """Copy some of the fixtures."""
    for name in names:
        source = FIXTURES / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True)
        else:
            shutil.copy(source, folder / name)


class Fuzz:
    """The unedited shards, and the answers of unedited files, which are computed when needed."""

    def __init__(self, work: Path) -> None:
        self.work = work
        copied(("shards",), work)
        self.shards = Shards(work / "shards")

    def run(self, seed: int, number: int) -> tuple[str, str, str]:
        """Return the kind of file, the outcome and the edit. Raises exceptions that should not occur."""
        rng = np.random.default_rng([seed, number])
        target, names, _ = TARGETS[int(rng.choice(len(TARGETS), p=[share for *_, share in TARGETS]))]
        folder = Path(tempfile.mkdtemp(dir=self.work))
        try:
            copied(names, folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made, answer = target(Case(folder, self.shards, rng))
                try:
                    found = answer()
                except InputError as refusal:
                    if not str(refusal).strip():
                        raise Wrong(f"{made}: a refusal without a reason") from None
                    return target.__name__, "refused", str(made)
            if not made.is_absurd:
                return target.__name__, "taken", str(made)
            if found == self.unedited(target, names, seed, number):
                return target.__name__, "same answer", str(made)
            raise Wrong(f"{made}: is taken")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def unedited(
        self,
        target: Callable[[Case], tuple[Edit, Callable[[], Answer]]],
        names: tuple[str, ...],
        seed: int,
        number: int,
    ) -> Answer:
        """Return the answer of a case's unedited files."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        try:
            copied(names, folder)
            rng = np.random.default_rng([seed, number])
            rng.choice(len(TARGETS), p=[share for *_, share in TARGETS])
            _, answer = target(Case(folder, self.shards, rng))
            if names:
                for name in names:
                    place = folder / name
                    shutil.rmtree(place) if place.is_dir() else place.unlink()
                copied(names, folder)
            else:
                tree = ENSEMBLE if "members" in yaml.safe_load((folder / "edited.yaml").read_text()) else None
                text = yaml.safe_dump(tree) if tree else (FIXTURES / "runs/finished/fold0/config.yaml").read_text()
                (folder / "edited.yaml").write_text(text)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return answer()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fuzz(work: Path, count: int, seed: int) -> tuple[Counter[str], dict[int, str]]:
    """Run cases. Returns the counts of outcomes, and the failures by case."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    made, counts, failures = Fuzz(work), Counter[str](), {}
    for number in range(count):
        try:
            what, ending, _ = made.run(seed, number)
            counts[f"{what} {ending}"] += 1
        except Exception as error:  # any exception is a finding
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "fuzz_stored" not in frame.filename] or frames
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            failures[number] = f"{where} {type(error).__name__}:  {' '.join(str(error).split())[:200]}"
            counts["failed"] += 1
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many cases (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--case", type=int, help="run this case alone, here")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as name:
        if arguments.case is not None:
            print(*Fuzz(Path(name)).run(arguments.seed, arguments.case))
            return 0
        counts, failures = fuzz(Path(name), arguments.count, arguments.seed)
    print(f"{sum(counts.values())} cases: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")
    alike: dict[str, list[int]] = {}
    for case, finding in failures.items():
        alike.setdefault(finding.split(":  ")[0], []).append(case)
    for cases in sorted(alike.values(), key=len, reverse=True):
        print(f"{len(cases)} x", *dict.fromkeys(failures[case] for case in cases[:5]), sep="\n  ")
        print(f"  again: python -m tests.tools.fuzz_stored --seed {arguments.seed} --case {cases[0]}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
