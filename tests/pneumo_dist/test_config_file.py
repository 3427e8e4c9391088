"""Experiments from YAML: inheritance, overrides, origins, and errors that a person can act on."""

from pathlib import Path

import pytest

from pneumo_dist.config_file import dump_resolved, load_config
from shards.errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
TWO_STAGES = """
name: two
epochs: 5
optim: {name: adamw, lr: 1.0e-3}
loss: {bce: 3}
stages:
  - name: first
  - name: second
    optim: {lr: 1.0e-4}
    image_size: 256
"""


def write(folder: Path, **files: str) -> Path:
    """Write name=text as name.yaml; return the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_top_level_stage_keys_are_defaults_that_stages_override(tmp_path: Path) -> None:
    first, second = load_config(write(tmp_path, exp=TWO_STAGES)).experiment.stages
    assert (first.epochs, first.optim.lr, first.image_size) == (5, 1e-3, 512)
    assert (second.epochs, second.optim.lr, second.image_size) == (5, 1e-4, 256)
    assert first.optim.name == second.optim.name == "adamw"
    assert first.loss.bce == 3 and first.loss.dice == 1


def test_base_is_merged_deeply_over_two_generations(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        child="base: parent.yaml\nname: child\nmodel: {encoder: resnet18}\nstages: [{name: main}]\n",
        parent="base: root.yaml\nmodel: {arch: fpn}\naugment: {shift_scale_rotate: {rotate: 10}}\n",
        root="seed: 3\nmodel: {arch: unet, in_channels: 1}\naugment: {hflip: 0.1, shift_scale_rotate: {p: 0.9}}\n",
    )
    config = load_config(path)
    model, augment = config.experiment.model, config.experiment.stages[0].augment
    assert (model.arch, model.encoder, model.in_channels, config.experiment.seed) == ("fpn", "resnet18", 1, 3)
    assert (augment.hflip, augment.shift_scale_rotate.p, augment.shift_scale_rotate.rotate) == (0.1, 0.9, 10)
    assert Path(config.origins["model.arch"]).name == "parent.yaml"
    assert Path(config.origins["model.in_channels"]).name == "root.yaml"
    assert Path(config.origins["model.encoder"]).name == "child.yaml"


def test_base_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, a="base: b.yaml\nname: a\n", b="base: a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml.*b\.yaml.*a\.yaml"):
        load_config(path)


def test_missing_config_names_the_nearest_file(tmp_path: Path) -> None:
    write(tmp_path, demo=TWO_STAGES)
    with pytest.raises(InputError, match=r"dmeo\.yaml: no such config.*demo\.yaml"):
        load_config(tmp_path / "dmeo.yaml")


@pytest.mark.parametrize("text", ["stages: {a: 1}\n", "name: x\n", "stages: [{epochs: 2}]\n", "- 1\n", "a: [1\n", ""])
def test_malformed_config_is_an_input_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"exp\.yaml"):
        load_config(write(tmp_path, exp=text))


@pytest.mark.parametrize(
    ("line", "key", "near"),
    [
        ("modle: {arch: unet}", "modle", "model"),
        ("model: {encodr: resnet18}", "model.encodr", "encoder"),
        ("epoch: 3", "epoch", "epochs"),
        ("optim: {lrr: 1}", "optim.lrr", "lr"),
    ],
)
def test_unknown_key_names_file_key_and_nearest_valid_name(tmp_path: Path, line: str, key: str, near: str) -> None:
    text = f"name: x\n{line}\nstages: [{{name: main}}]\n"
    with pytest.raises(InputError) as caught:
        load_config(write(tmp_path, exp=text))
    message = str(caught.value)
    assert "exp.yaml" in message and key in message and f"did you mean {near}?" in message


def test_unknown_key_of_a_stage_names_the_stage(tmp_path: Path) -> None:
    text = "name: x\nstages: [{name: main}, {name: fine, optim: {learning: 1, clip_nrm: 2}}]\n"
    with pytest.raises(InputError, match=r"stages\.fine\.optim\.(learning|clip_nrm)"):
        load_config(write(tmp_path, exp=text))


@pytest.mark.parametrize(
    "line", ["seeed: 1", "modle: {arch: unet}", "optim: {lr: -1}", "model: {decoder_channels: [x]}"]
)
def test_error_names_the_base_file_where_the_fault_is(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, child="base: root.yaml\nname: x\nstages: [{name: main}]\n", root=f"{line}\n")
    with pytest.raises(InputError, match=r"root\.yaml"):
        load_config(path)


def test_wrong_value_names_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"exp\.yaml: stages\.main\.epochs"):
        load_config(write(tmp_path, exp="name: x\nstages: [{name: main, epochs: none}]\n"))


def test_set_changes_a_default_in_every_stage(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, exp=TWO_STAGES), ["optim.lr=1e-4", "seed=9", "model.arch=fpn"])
    assert [stage.optim.lr for stage in config.experiment.stages] == [1e-4, 1e-4]
    assert [stage.optim.name for stage in config.experiment.stages] == ["adamw", "adamw"]
    assert (config.experiment.seed, config.experiment.model.arch) == (9, "fpn")


def test_set_changes_one_stage_only(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, exp=TWO_STAGES), ["stages.first.loss.bce=7", "stages.second.epochs=2"])
    first, second = config.experiment.stages
    assert (first.loss.bce, second.loss.bce, first.epochs, second.epochs) == (7, 3, 5, 2)


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("2e1", 20.0), ("1.5", 1.5), ("3", 3.0)])
def test_number_without_a_dot_is_a_number(tmp_path: Path, text: str, value: float) -> None:
    config = load_config(write(tmp_path, exp=TWO_STAGES.replace("1.0e-4", text)), [f"stages.first.optim.lr={text}"])
    assert [stage.optim.lr for stage in config.experiment.stages] == [value, value]


def test_number_with_an_exponent_fits_a_whole_number(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, exp=TWO_STAGES), ["epochs=2e1"])
    assert [stage.epochs for stage in config.experiment.stages] == [20, 20]


def test_set_takes_lists_and_null(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, exp=TWO_STAGES),
        ["model.decoder_channels=[8, 4, 2, 2, 2]", "sample_rate=0.5", "sample_rate=null"],
    )
    assert config.experiment.model.decoder_channels == (8, 4, 2, 2, 2)
    assert config.experiment.stages[0].sample_rate is None


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("optim.lr", "key=value"),
        ("=3", "key=value"),
        ("optim..lr=3", "key=value"),
        ("stages.third.epochs=3", "first, second"),
        ("stages=3", "first, second"),
        ("optim.lr=[1", "YAML"),
        ("optim.lrr=1", "did you mean lr"),
        ("optm.lr=1", "did you mean optim"),
        ("optim.lr=-1", "optim.lr"),
    ],
)
def test_wrong_override_names_itself_and_the_mend(tmp_path: Path, override: str, hint: str) -> None:
    with pytest.raises(InputError, match="--set") as caught:
        load_config(write(tmp_path, exp=TWO_STAGES), [override])
    assert hint in str(caught.value)


def test_resolved_config_loads_again_and_tells_each_origin(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        exp=f"base: root.yaml\n{TWO_STAGES}",
        root="seed: 4\nmodel: {decoder_channels: [8, 8, 8, 8, 8], decoder_use_norm: false}\nschedule: {min_lr: 1e-7}\n",
    )
    config = load_config(path, ["loss.dice=2", "stages.second.top_k=5"])
    text = dump_resolved(config)
    again = load_config(write(tmp_path, again=text))
    assert again.experiment == config.experiment
    lines = [line.strip() for line in text.splitlines()]
    assert "seed: 4  # root.yaml" in lines
    assert "epochs: 5  # exp.yaml" in lines
    assert "early_stop: null  # default" in lines
    assert "dice: 2.0  # --set" in lines
    assert "lr: 0.0001  # exp.yaml" in lines
    assert {"top_k: 5  # --set", "top_k: 3  # default"} <= set(lines)


def test_stages_replaced_by_a_child_do_not_keep_the_base_as_origin(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        child="base: root.yaml\nstages: [{name: main}]\n",
        root="name: x\nstages: [{name: main, epochs: 7}]\n",
    )
    config = load_config(path)
    assert config.experiment.stages[0].epochs == 10
    assert "epochs: 10  # default" in dump_resolved(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_resolves(path: Path, tmp_path: Path) -> None:
    if "stages:" in path.read_text():
        config = load_config(path)
    else:  # a file of defaults only, made to be a base
        config = load_config(write(tmp_path, exp=f"{path.read_text()}\nname: x\nstages: [{{name: main}}]\n"))
    again = load_config(write(tmp_path, again=dump_resolved(config)))
    assert again.experiment == config.experiment
