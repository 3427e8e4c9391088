"""Names of repetitions."""

from itertools import islice

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.runs.repetitions import repetition_name, repetitions


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
