"""The times and scores of the ablation are those of their definitions, and every change is a valid config."""

import math
from pathlib import Path

import pytest
from builders import phantom_shards
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import ROOT, ablation
from benchmarks.ablation import GOAL, SEEDS, Run, config_of, main, runs_of, table, train
from benchmarks.ablation_rows import CHANGES, NONE, SHIPPED, Change
from benchmarks.curves import Point
from pneumo_dist.config.load import load_config
from shards.files import write_json

SHARES = st.sampled_from([0.0, 0.3, 0.59, 0.6, 0.61, 1.0])


def store(name: str, seed: int, work: Path, *curve: tuple[float, float, float]) -> None:
    write_json(work / "results" / f"{name}-{seed}.json", curve)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=8))
def test_goal_is_the_first_epoch_that_reaches_it_and_the_best_that_with_the_best_mean(
    epochs: list[tuple[float, float]],
) -> None:
    run = Run(tuple(Point(10.0 * number, *epoch) for number, epoch in enumerate(epochs, 1)))
    reached = math.inf
    best = epochs[0]
    for number, (positive, mean) in reversed(list(enumerate(epochs, 1))):
        if positive >= GOAL:
            reached = 10.0 * number
        if mean >= best[1]:
            best = (positive, mean)
    assert run.seconds_to_goal == reached
    assert run.best == best


def test_table_has_medians_over_the_seeds_and_ratios_of_pairs(tmp_path: Path) -> None:
    for seed, seconds in zip(SEEDS, (100.0, 200.0, 300.0), strict=True):
        store("demo", seed, tmp_path, (seconds, 0.6, 0.8), (2 * seconds, 0.7, 0.9))
        assert len(runs_of(NONE, tmp_path)) == seed + 1
    for seed, seconds in zip(SEEDS, (50.0, 50.0, 300.0), strict=True):
        store("batch-8", seed, tmp_path, (seconds, 0.65, 0.8))
        store("sgd", seed, tmp_path, (seconds, 0.1, 0.5))
    lines = table(tmp_path).splitlines()
    assert lines[2] == f"| {NONE.text} | 200 (100, 200, 300) | 1.00 x | 0.700 (0.700, 0.700, 0.700) | 0.900 | 400 |"
    batch, sgd = (next(line for line in lines if text in line) for text in ("batch of 8", "SGD"))
    assert "| 50 (50, 50, 300) | 0.50 x | 0.650" in batch
    assert "| never (never, never, never) |  | 0.100" in sgd
    assert sum("not measured" in line for line in lines) == len(CHANGES) - 3
    for seed in SEEDS:
        store("demo", seed, tmp_path, (100.0, 0.1, 0.5))
    assert "| never (never, never, never) |  |" in table(tmp_path).splitlines()[2], "there is no ratio"


def test_every_change_is_a_valid_config_of_its_own(tmp_path: Path) -> None:
    configs = {}
    for change in CHANGES:
        path = config_of(change, 1, tmp_path / change.name)
        configs[load_config(path, change.settings).experiment.model_dump_json()] = change.name
    assert len(configs) == len({change.text for change in CHANGES}) == len(CHANGES)


def test_best_change_is_the_shipped_config(tmp_path: Path) -> None:
    found = load_config(config_of(SHIPPED, 0, tmp_path), SHIPPED.settings).experiment
    assert found.model_copy(update={"name": "demo"}) == load_config(ROOT / "configs/demo.yaml").experiment


@pytest.mark.rare
@pytest.mark.slow
def test_training_with_two_stages_gives_one_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = phantom_shards(tmp_path / "films", films=24, size=64).folder
    monkeypatch.setattr(ablation, "shards_of", lambda work: shards)
    change = next(change for change in CHANGES if len(change.stages) == 2)
    short = Change("short", "short", ("epochs=2", "image_size=64", "global_batch=4", "micro_batch=2"), change.stages)
    run = train(short, 0, tmp_path)
    seconds = [epoch[0] for epoch in run.curve]
    assert len(run.curve) == 4 and seconds == sorted(seconds) and seconds[0] > 0


def test_stored_runs_are_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in SEEDS:
        store("batch-8", seed, tmp_path, (1.0, 0.6, 0.8))
    main(["--work", str(tmp_path), "--only", "batch-8"])
    assert capsys.readouterr().out.strip() == table(tmp_path).strip()
