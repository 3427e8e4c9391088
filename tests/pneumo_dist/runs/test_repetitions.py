"""Names of repetitions, and the repetition whose weights are used."""

from itertools import islice
from pathlib import Path

import pytest
from tiny_state import state_of

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.runs.fold_run import checkpoints_of
from pneumo_dist.runs.repetitions import best_repetition, repetition_name, repetitions


def test_repetitions_are_numbered_from_2() -> None:
    assert [repetition_name("part1", number) for number in (1, 2, 3, 10)] == ["part1", "part1-2", "part1-3", "part1-10"]
    assert repetition_name("part1-2", 2) == "part1-2-2"


def test_stage_repeats_without_a_limit_or_never() -> None:
    stage = StageConfig(name="a", epochs=3)
    assert list(repetitions(stage)) == [stage]
    repeating = stage.model_copy(update={"repeat": "until_no_gain"})
    names = [each.name for each in islice(repetitions(repeating), 3)]
    assert names == ["a", "a-2", "a-3"]
    assert all(each.epochs == 3 for each in islice(repetitions(repeating), 3))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([], "a"),
        ([[]], "a"),
        ([[0.0]], "a"),
        ([[0.5, 0.3], [0.4, 0.6]], "a-2"),
        ([[0.3, 0.5], [0.4, 0.4]], "a"),
        ([[0.5], [0.6], [0.6]], "a-2"),
        ([[0.5], [0.4], [0.9]], "a"),
        ([[0.5], [0.7], []], "a-2"),
    ],
    ids=[
        "not trained",
        "not validated",
        "one",
        "two",
        "best epochs compared",
        "no gain",
        "no gain and then one",
        "unfinished",
    ],
)
def test_best_repetition_is_the_last_that_raised_the_score(
    tmp_path: Path, scores: list[list[float]], best: str
) -> None:
    stage = StageConfig(name="a", repeat="until_no_gain")
    for repetition, epochs in zip(repetitions(stage), scores, strict=False):
        history = [{"step": step, "score": score} for step, score in enumerate(epochs)]
        folder = checkpoints_of(tmp_path, repetition.name)
        folder.path.mkdir(parents=True)
        folder.save(len(epochs), state_of(len(epochs), history))
    assert best_repetition(stage, tmp_path).path == checkpoints_of(tmp_path, best).path
    assert best_repetition(StageConfig(name="a"), tmp_path).path == checkpoints_of(tmp_path, "a").path
