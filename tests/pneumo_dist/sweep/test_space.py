"""The space of a sweep: values, grid order, and refusals before anything runs."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PLAIN

from pneumo_dist.config.load import load_config
from pneumo_dist.sweep.space import Parameter, check_space, load_space, overrides_of
from shards.errors import InputError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN.model_dump_json())
    return path


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"choices": ["a", 2, None, True, [1, 0.5], {"bce": 1}]}, ("a", "2", "null", "true", "[1, 0.5]", "{bce: 1}")),
        ({"whole": [-1, 2]}, (-1, 0, 1, 2)),
        ({"whole": [2, 8], "step": 3}, (2, 5, 8)),
        # Sums of floats would give 0.30000000000000004.
        ({"range": [0, 0.4], "step": 0.1}, (0.0, 0.1, 0.2, 0.3, 0.4)),
        ({"range": [0, 1]}, None),
        ({"log": ["1e-4", "1e-2"]}, None),
    ],
)
def test_values_of_a_key(content: dict[str, Any], expected: tuple[object, ...] | None) -> None:
    assert Parameter.model_validate(content).values == expected


def test_values_reach_the_config_unchanged(config: Path) -> None:
    for value in (1e-05, 0.1, 1 / 3, 2.5e-7):
        loaded = load_config(config, overrides_of({"optim.lr": value})).experiment
        assert [stage.optim.lr for stage in loaded.stages] == [value, value]
    choices = Parameter(choices=({"bce": 1, "dice": 0.5}, {"bce": 0, "dice": 1e-3}))
    for text, choice in zip(choices.texts, choices.choices or (), strict=True):
        loss = load_config(config, overrides_of({"stages.main.loss": text})).experiment.stages[1].loss
        assert {"bce": loss.bce, "dice": loss.dice} == choice


def test_the_grid_varies_the_last_key_fastest(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, "b: {choices: [x, y]}\na: {whole: [1, 3]}\nc: {range: [0, 1], step: 1}\n"))
    naive = [{"b": b, "a": a, "c": c} for b in ("x", "y") for a in (1, 2, 3) for c in (0.0, 1.0)]
    assert space.combinations() == naive
    assert list(itertools.chain(*(list(each) for each in space.combinations()))) == ["b", "a", "c"] * 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a space is a mapping of config keys to values"),
        ("- a", "a space is a mapping"),
        ("a: [1", "not valid YAML"),
        ("a: 1", "a: give {choices: "),
        ("a: {}", "a: give one of choices"),
        ("a: {choices: [1], whole: [1, 2]}", "a: give one of choices"),
        ("a: {values: [1]}", "a.values: unknown; give one of choices"),
        ("a: {choices: []}", "a.choices: Tuple should have at least 1 item"),
        ("a: {choices: [1, 1]}", "names a choice twice"),
        ('a: {choices: ["x\\ny"]}', "a choice must fit on one line"),
        ("a: {range: [1, 1]}", "range needs a lower end below the upper end"),
        ("a: {log: [0, 1]}", "a.log.0: Input should be greater than 0"),
        ("a: {range: [0, .inf]}", "a.range.1: Input should be"),
        ("a: {range: [no, yes]}", "a.range: is a boolean"),
        ("a: {whole: [1, 2.5]}", "a.whole.1: Input should be a valid integer"),
        ("a: {whole: [1, 3], step: 0.5}", "the step of whole must be a whole number"),
        ("a: {range: [0, 1], step: 0.3}", "the step must divide the distance of the ends"),
        ("a: {choices: [1, 2], step: 1}", "step goes with range or whole"),
        ("name: {choices: [x]}", "a sweep names its trials itself"),
        ("runtime.tf32: {choices: [true]}", "runtime.tf32: holds for a process and all its trials; give it with --set"),
        ("a.b: {choices: [1]}\na: {choices: [2]}", "a.b: is a part of a, which the space sets too"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_space(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file; give a space, such as optim\.lr:"):
        load_space(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr: {choices: [1]}", "optim.lrr=1: --set: unknown key optim.lrr; did you mean lr?"),
        ("stages.last.epochs: {choices: [1]}", "write stages.NAME.key=value with one of the stages early, main"),
        ("image_size: {choices: [64, 65]}", "image_size=65: --set: image_size: Input should be a multiple of 32"),
        ("optim.lr: {range: [-1, 1]}", "optim.lr=-1.0: --set: optim.lr: Input should be greater than 0"),
        ("top_k: {whole: [0, 3]}", "top_k=0: --set: top_k: Input should be greater than or equal to 1"),
        ("data.threads: {choices: [2]}", "data.threads: --set gives data; remove one of them"),
    ],
)
def test_values_that_the_config_refuses_are_named(tmp_path: Path, config: Path, text: str, message: str) -> None:
    space = load_space(write(tmp_path, text))
    with pytest.raises(InputError) as caught:
        check_space(space, config, ["data={loader: torch}"], grid=False)
    assert str(caught.value).startswith(f"{space.path}: ") and message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_grid_is_checked_in_all_combinations(tmp_path: Path, config: Path) -> None:
    """Each of these values is valid with the config's others."""
    text = "optim.ema_decay: {choices: [null, 0.9]}\noptim.swa_epochs: {choices: [null, 1]}\n"
    space = load_space(write(tmp_path, text))
    check_space(space, config, [], grid=False)
    with pytest.raises(InputError, match=r"optim.ema_decay=0.9, optim.swa_epochs=1: .*both average the weights"):
        check_space(space, config, [], grid=True)


def test_a_grid_needs_values_that_can_be_counted(tmp_path: Path, config: Path) -> None:
    for text in ("optim.lr: {log: [1e-4, 1e-2]}", "optim.lr: {range: [0.1, 0.2]}", "epochs: {whole: [1, 100000]}"):
        with pytest.raises(InputError, match="--grid needs choices, or whole or range with a larger step"):
            check_space(load_space(write(tmp_path, text)), config, [], grid=True)
    many = "".join(f"k{number}: {{whole: [1, 10]}}\n" for number in range(5))
    with pytest.raises(InputError, match="more than 10000 combinations"):
        load_space(write(tmp_path, many)).combinations()
