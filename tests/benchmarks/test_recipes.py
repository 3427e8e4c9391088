"""Estimates of the shipped experiments, compared with what was measured and with a count by hand."""

import pytest
from builders import experiment_of

from benchmarks import ROOT, recipes
from benchmarks.gpu_cards import CARDS
from benchmarks.recipes import CONFIGS, estimates, shipped_experiments, split_of, step_cost
from pneumo_dist.config.load import load_config

H200 = CARDS["NVIDIA H200"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "ms", "gigabytes"),
    [
        ("heavy_se_resnext50", ("micro_batch=2",), 71.4, 3.8),
        ("heavy_se_resnext101", ("micro_batch=2",), 148.0, 5.0),
        ("heavy_senet154", ("micro_batch=2",), 167.1, 8.4),
        ("heavy_se_resnext50", ("micro_batch=48", "global_batch=48", "image_size=512"), 48 / 303.8 * 1e3, 26.4),
    ],
)
def test_estimates_are_close_to_what_an_h200_measured(
    name: str, overrides: tuple[str, ...], ms: float, gigabytes: float
) -> None:
    """docs/performance.md has the measured steps. The last is of the same network without a class output."""
    experiment = load_config(CONFIGS / f"{name}.yaml", overrides).experiment
    cost = step_cost(experiment, experiment.stages[0], H200)
    assert cost.seconds * 1e3 == pytest.approx(ms, rel=0.3)
    assert cost.bytes / 1e9 == pytest.approx(gigabytes, rel=0.2)


def test_hours_are_films_divided_by_the_rate() -> None:
    model = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8)}}
    stage = {"epochs": 3, "sample_rate": 0.5, "global_batch": 4, "micro_batch": 4}
    experiment = experiment_of(stage, {**stage, "always_train": True}, model=model)
    first, second = estimates(experiment, H200)
    assert first.rate == recipes.LOADER_RATE, "films of such a network come from the loader alone"
    # 1,903 positives and as many negatives, in whole steps of 4, and a third of 2,135 validated films
    assert first.hours == pytest.approx(3 * (3804 + 2135 / 3) / first.rate / 3600)
    assert second.hours == pytest.approx(3 * (4384 + 2135 / 3) / second.rate / 3600)


def test_folds_are_those_of_the_competition() -> None:
    (stage,) = experiment_of({}).stages
    split = split_of(stage)
    assert (len(split.train), len(split.positives), len(split.validation)) == (8540, 1903, 2135)
    assert len(split_of(stage.model_copy(update={"always_train": True})).train) == 8540 + 1372


@pytest.mark.slow
def test_page_contains_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["recipes", "--markdown"])
    assert recipes.main() == 0
    table = capsys.readouterr().out
    assert table in (ROOT / "docs/reproduce.md").read_text(), "run python -m benchmarks.recipes --markdown"
    assert len(shipped_experiments()) == 16
