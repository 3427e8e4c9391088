"""The race: its clock, scores, results, tables and plot, and its own sides on a few films."""

import hashlib
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import phantom_shards
from naive_dice import naive_dice

from benchmarks import ROOT, race
from benchmarks.curves import Point, seconds_to
from benchmarks.race_clock import FACTS, Clock, Facts, load_facts, load_maps, save_facts, save_maps
from benchmarks.race_external import environment, run_module
from benchmarks.race_films import DATASET, Films, fold_keys, pictures_of, shards_of
from benchmarks.race_job import Job, run_logged
from benchmarks.race_score import Result, load, median_to, point_of, results_of, save
from benchmarks.race_settings import NAMES, experiment_settings, plain_settings
from benchmarks.race_sides import DEMO, SIDES
from benchmarks.race_table import MISSING, tables
from pneumo_dist.config.load import load_config
from pneumo_dist.scoring.masks import label_map
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset.table import Shards
from shards.palette import BLUE, VERMILION, Colour

SETTINGS = {name: f"its {name}" for name in NAMES}


def result(side: str, seed: int, *points: tuple[float, float]) -> Result:
    curve = tuple(Point(seconds, dice, 0.5 + dice / 2) for seconds, dice in points)
    return Result(side, seed, curve, 10.0 * (seed + 1), {**SETTINGS, "batch": f"{side}'s batch"}, {"torch": "2.0"})


def test_clock_counts_from_the_first_step_and_not_while_the_race_scores() -> None:
    now = [100.0]
    clock = Clock(before=7.0, now=lambda: now[0])
    now[0] = 150.0
    assert clock.seconds == 7
    clock.start()
    now[0] = 160.0
    clock.start()
    assert clock.seconds == 17
    with pytest.raises(ValueError, match="scoring"), clock.paused():
        now[0] = 1000.0
        assert clock.seconds == 17
        raise ValueError("scoring")
    now[0] = 1003.0
    assert clock.seconds == 20


def test_maps_and_facts_are_read_as_they_were_stored(tmp_path: Path) -> None:
    maps = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    save_maps(tmp_path / "maps/000001.npz", 12.5, ["one", "two"], maps)
    seconds, keys, read = load_maps(tmp_path / "maps/000001.npz")
    assert (seconds, keys) == (12.5, ["one", "two"]) and read.dtype == np.uint8 and (read == maps).all()
    facts = Facts({"batch": "8"}, {"torch": "2.0"}, 12.5, 960)
    save_facts(tmp_path / "facts.json", facts)
    assert load_facts(tmp_path / "facts.json") == facts


def test_maps_are_scored_on_the_label_grid_at_the_best_triplet(tmp_path: Path) -> None:
    shards = phantom_shards(tmp_path, films=6, size=64)
    rng, keys = np.random.default_rng(3), shards.column("key").tolist()
    maps = []
    for row in range(len(shards)):
        truth = shards.label(row)
        maps.append(
            np.where(truth > 0, rng.choice([90, 180], truth.shape), rng.choice([0, 90], truth.shape, p=[0.9, 0.1]))
        )
    maps = [each.astype(np.uint8) for each in maps]
    order = rng.permutation(len(keys))
    save_maps(tmp_path / "maps.npz", 30.0, [keys[each] for each in order], np.stack([maps[each] for each in order]))
    films = [(label_map(p8, shards.grid(row)), shards.label(row)) for row, p8 in enumerate(maps)]
    # Between two of these levels the masks do not change, and neither do they between two areas.
    found = {}
    for top, bottom in itertools.product((0, 90, 180), repeat=2):
        areas = {1, *((film > top).sum() for film, _ in films), max(film.size for film, _ in films) + 1}
        for area in areas:
            triplet = Triplet(top / 255, int(area), bottom / 255)
            dice = [naive_dice(film, truth, triplet) for film, truth in films]
            positive = [each for each, (_, truth) in zip(dice, films, strict=True) if truth.any()]
            found[triplet] = (float(np.mean(dice)), float(np.mean(positive)))
    best = max(mean for mean, _ in found.values())
    point = point_of(tmp_path / "maps.npz", shards)
    assert point.seconds == 30
    assert point.dice == pytest.approx(best, abs=1e-12)
    ties = [positive for mean, positive in found.values() if mean == pytest.approx(best, abs=1e-12)]
    assert any(point.positive_dice == pytest.approx(each, abs=1e-12) for each in ties)


def test_time_to_the_goal_is_that_of_the_first_point_there() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        curve = [
            Point(float(s), d, d) for s, d in zip(np.sort(rng.uniform(0, 90, 6)), rng.uniform(0, 1, 6), strict=True)
        ]
        goal, cap = rng.uniform(0.2, 1), rng.uniform(20, 90)
        reached = [point.seconds for point in curve if point.seconds <= cap and point.positive_dice >= goal]
        assert seconds_to(curve, goal, cap) == (min(reached) if reached else math.inf)
    results = [result("ours", 0, (50, 0.7)), result("ours", 1, (90, 0.5)), result("ours", 2, (70, 0.6))]
    assert median_to(results, 0.6, 100) == statistics.median([50, math.inf, 70]) == 70
    assert math.isinf(median_to(results, 0.6, 60))


def test_results_are_read_as_they_were_saved(tmp_path: Path) -> None:
    slow = replace(result("nnunet", 1, (60, 0.1), (120, 0.2)), extra={"mirrored": 0.25})
    fast = result("nnunet", 0, (60, 0.1), (120, 0.7))
    for each in (slow, fast, result("ours", 0, (5, 0.7))):
        save(tmp_path / f"results/{each.side}-{each.seed}.json", each, 0.6, 100)
    assert results_of(tmp_path, "nnunet") == [fast, slow]
    assert results_of(tmp_path, "plain") == []
    content = json.loads((tmp_path / "results/nnunet-1.json").read_text())
    assert content["seconds_to_goal"] is None and (content["goal"], content["cap"]) == (0.6, 100)
    assert json.loads((tmp_path / "results/ours-0.json").read_text())["seconds_to_goal"] == 5
    assert load(tmp_path / "results/nnunet-1.json") == slow


def test_tables_say_what_was_seen_and_what_was_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "results/ours-0.json", result("ours", 0, (60, 0.5), (150, 0.66), (180, 0.64)), 0.6, 7200)
    save(tmp_path / "results/ours-1.json", result("ours", 1, (90, 0.61), (200, 0.72)), 0.6, 7200)
    seen = replace(result("nnunet", 0, (60, 0.1), (7200, 0.4)), extra={"with mirrored views": 0.45})
    save(tmp_path / "results/nnunet-0.json", seen, 0.6, 7200)
    assert race.main(["--work", str(tmp_path), "--table", "--hours", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == tables(tmp_path, 0.6, 7200).strip()
    lines = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in printed.splitlines()}
    ours, nnunet = lines[SIDES["ours"].title], lines[SIDES["nnunet"].title]
    assert ours[:4] == ["2.0 min (2.5 min, 1.5 min)", "0.720 after 3.3 min (0.660, 0.720)", "0.860", "15.0"]
    assert nnunet[:2] == ["not in 120.0 min", "0.400 after 120.0 min; 0.450 with mirrored views"]
    assert lines[SIDES["plain"].title][:4] == [MISSING] * 4
    batches = {"ours": "ours's batch", "nnunet": "nnunet's batch"}
    assert [cell.removesuffix(" |") for cell in lines["batch"]] == [batches.get(name, MISSING) for name in SIDES]
    assert set(NAMES) | {"a user would change"} <= set(lines)


def test_plot_draws_the_sides_that_have_results(tmp_path: Path) -> None:
    def is_drawn(colour: Colour) -> bool:
        assert race.main(["--work", str(tmp_path), "--plot", str(tmp_path / "curves.png")]) == 0
        picture = cv2.imread(str(tmp_path / "curves.png"))
        assert picture is not None
        return bool((picture == np.array(colour[::-1])).all(-1).any())

    save(tmp_path / "results/ours-0.json", result("ours", 0, (60, 0.5), (150, 0.66)), 0.6, 7200)
    assert is_drawn(BLUE) and not is_drawn(VERMILION)
    save(tmp_path / "results/nnunet-0.json", result("nnunet", 0, (60, 0.1), (7200, 0.4)), 0.6, 7200)
    assert is_drawn(VERMILION)


def test_settings_are_those_of_the_config() -> None:
    demo = load_config(DEMO).experiment
    stage = demo.stages[0]
    one = demo.model_copy(update={"stages": (stage,)})
    found, plain = experiment_settings(one), plain_settings(one)
    assert set(found) == set(plain) == set(NAMES)
    assert found["batch"] == plain["batch"] == str(stage.global_batch)
    assert found["learning rate"] == f"{stage.optim.lr:g}"
    assert f"rotate {stage.augment.shift_scale_rotate.rotate:g}" in found["augmentation"]
    assert ("distortion" in found["augmentation"]) == (stage.augment.distortion.p > 0)
    first = stage.model_copy(update={"image_size": 64, "sample_rate": None})
    two = experiment_settings(demo.model_copy(update={"stages": (first, stage)}))
    assert two["image size"] == f"64 x 64, then {stage.image_size} x {stage.image_size}"
    assert two["films drawn"].startswith("each once in an epoch, then ")
    assert two["loss"] == found["loss"] == "1 bce + 1 dice, Dice of positive films"
    assert "norm group_ws" in found["network"]


def test_finished_seeds_are_kept_and_interrupted_ones_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    def runs(fails: Callable[[Job], bool]) -> Callable[[Job], Result]:
        def run(job: Job) -> Result:
            calls.append((job.side, job.seed))
            job.folder.mkdir(parents=True, exist_ok=True)
            if fails(job):
                raise RuntimeError("killed")
            return result(job.side, job.seed, (60, 0.7))

        return run

    monkeypatch.setattr(race, "shards_of", lambda work: work / "shards")
    jobs = [Job(side, seed, tmp_path, 100, 0.6) for side in ("ours", "plain") for seed in (0, 1)]
    for name, fails in (("ours", lambda job: job.seed == 1), ("plain", lambda job: False)):
        monkeypatch.setitem(SIDES, name, replace(SIDES[name], run=runs(fails)))
    with pytest.raises(RuntimeError, match="killed"):
        race.run(jobs)
    assert [job.result.exists() for job in jobs] == [True, False, False, False]
    assert [job.folder.exists() for job in jobs] == [False, True, False, False]
    monkeypatch.setitem(SIDES, "ours", replace(SIDES["ours"], run=runs(lambda job: False)))
    race.run(jobs)
    assert calls == [("ours", 0), ("ours", 1), ("ours", 1), ("plain", 0), ("plain", 1)]
    assert all(job.result.exists() and not job.folder.exists() for job in jobs)


def test_cores_are_limited_for_the_processes_of_a_side(tmp_path: Path) -> None:
    allowed, log = os.sched_getaffinity(0), tmp_path / "log"
    with race.limited_to(1):
        run_logged([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], log)
    assert log.read_text().strip() == str({min(allowed)})
    assert os.sched_getaffinity(0) == allowed


def test_failed_command_names_its_log_and_a_slow_one_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "logs/side.log"
    failing = "import os; print(os.environ['FILMS'], os.environ['OMP_NUM_THREADS']); raise SystemExit(3)"
    with pytest.raises(RuntimeError, match=f"ended with 3; see {log}"):
        run_logged([sys.executable, "-c", failing], log, {"FILMS": "no films here"}, threads=2)
    assert log.read_text() == "no films here 2\n"
    run_logged([sys.executable, "-c", "import time; time.sleep(600); print('end')"], log, limit=0.5)
    assert log.read_text() == "no films here 2\n"


def test_training_that_has_ended_is_scored_and_not_run_again(tmp_path: Path) -> None:
    shards = phantom_shards(tmp_path, films=4, size=64)
    keys = shards.column("key").tolist()
    truth = np.stack([shards.label(row) for row in range(4)]) * np.uint8(255)
    job = Job("nnunet", 2, tmp_path, 100, 0.6)
    save_maps(job.folder / "maps/000200.npz", 20.0, keys, truth)
    save_maps(job.folder / "maps/000100.npz", 10.0, keys, np.zeros_like(truth))
    facts = Facts(SETTINGS, {"torch": "2.0"}, 20.0, 300)
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        run_module(job, tmp_path / "no-such-folder", "a.module", [], {})
    save_facts(job.folder / FACTS, facts)
    found = run_module(job, tmp_path / "no-such-folder", "a.module", [], {})
    without = float(np.mean([not mask.any() for mask in truth]))
    assert found == Result("nnunet", 2, (Point(10, 0, without), Point(20, 1, 1)), 15.0, SETTINGS, facts.versions)
    save_maps(job.folder / "mirrored.npz", 20.0, keys, truth)
    assert list(run_module(job, tmp_path / "no-such-folder", "a.module", [], {}).extra.values()) == [1]


def test_environment_with_the_pins_is_used_again(tmp_path: Path) -> None:
    for name in ("nnunet", "lightning"):
        pins = (ROOT / f"benchmarks/race-{name}.txt").read_bytes()
        assert all("==" in line for line in pins.decode().splitlines() if not line.startswith("#"))
        folder = tmp_path / f"venv-{name}"
        folder.mkdir()
        (folder / "pins.sha256").write_text(hashlib.sha256(pins).hexdigest())
        assert environment(tmp_path, name, tmp_path / "log") == folder / "bin"
        assert not (tmp_path / "log").exists()


@pytest.mark.rare
@pytest.mark.slow
def test_own_sides_run_on_films_that_others_get_as_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = Shards(shards_of(tmp_path, Films(training=48, test=2, size=64, stored=64)))
    pictures = pictures_of(tmp_path)
    keys = shards.column("key").tolist()
    for split, rows in zip(fold_keys(pictures), shards.fold_rows(0, always_train=False), strict=True):
        assert split == [keys[row] for row in rows]
        for row in rows:
            for member, path, scale in (
                ("image", f"imagesTr/{keys[row]}_0000", 1),
                ("mask", f"labelsTr/{keys[row]}", 255),
            ):
                stored = cv2.imdecode(np.frombuffer(shards.read(row, member), np.uint8), cv2.IMREAD_GRAYSCALE)
                picture = cv2.imread(str(pictures / DATASET / f"{path}.png"), cv2.IMREAD_GRAYSCALE)
                assert stored is not None and picture is not None and (stored == picture * np.uint8(scale)).all()
    arguments = ["--work", str(tmp_path), "--only", "ours,plain", "--seeds", "1", "--trial", "--goal", "0"]
    assert race.main(arguments) == 0
    for side in ("ours", "plain"):
        (found,) = results_of(tmp_path, side)
        assert len(found.curve) == 2 and 0 < found.curve[0].seconds < found.curve[1].seconds
        assert found.films_per_second > 0 and set(found.settings) == set(NAMES)
    assert capsys.readouterr().out.count(MISSING) > 8
    assert not list((tmp_path / "sides").iterdir())
