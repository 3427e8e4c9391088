"""Experiments from YAML: inheritance, overrides, origins, and errors with a fix."""

import os
import warnings
from pathlib import Path

import pytest

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.load import LoadedConfig, dump_resolved, load_config, read_tree
from pneumo_dist.config.model import FcnConfig
from pneumo_dist.config.stage import StageConfig, accumulation
from shards.errors import InputError, InputErrors

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
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


@pytest.mark.parametrize(("in_file", "overrides"), [("host", ()), ("dali", ("data.loader=host",))])
def test_old_name_of_the_torch_loader_is_read_with_a_warning(
    tmp_path: Path, in_file: str, overrides: tuple[str, ...]
) -> None:
    path = write(tmp_path, exp=f"{TWO_STAGES}data: {{loader: {in_file}}}\n")
    origin = "--set" if overrides else str(path)
    with pytest.warns(UserWarning, match=f"^{origin}: data.loader: host is now called torch; write torch$") as caught:
        config = load_config(path, overrides)
    assert len(caught) == 1 and config.experiment.data.loader == "torch"
    assert "  loader: torch  #" in dump_resolved(config)
    with warnings.catch_warnings(action="error"):
        assert load_config(path, overrides, is_record=True) == config


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


def test_circular_base_is_refused(tmp_path: Path) -> None:
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
def test_error_names_the_base_file_that_it_is_in(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, child="base: root.yaml\nname: x\nstages: [{name: main}]\n", root=f"{line}\n")
    with pytest.raises(InputError, match=r"root\.yaml"):
        load_config(path)


def test_wrong_value_names_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"exp\.yaml: stages\.main\.epochs"):
        load_config(write(tmp_path, exp="name: x\nstages: [{name: main, epochs: none}]\n"))


def test_all_errors_are_reported_at_once_and_shared_ones_once(tmp_path: Path) -> None:
    stages = "stages: [{name: one}, {name: two, top_k: 0}]\n"
    path = write(tmp_path, exp=f"name: x\nbase: root.yaml\nepochs: 0\n{stages}", root="seeed: 1\nmodel: {arch: 3}\n")
    with pytest.raises(InputErrors) as caught:
        load_config(path, ["optim.lr=-1"])
    messages = [message.replace(f"{tmp_path}/", "") for message in caught.value.messages]
    assert [message.split(": ")[:2] for message in messages] == [
        ["root.yaml", "unknown key seeed; did you mean seed?"],
        ["root.yaml", "model.arch"],
        ["exp.yaml", "epochs"],
        ["--set", "optim.lr"],
        ["exp.yaml", "stages.two.top_k"],
    ]


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
def test_wrong_override_is_named_with_its_fix(tmp_path: Path, override: str, hint: str) -> None:
    with pytest.raises(InputError, match="--set") as caught:
        load_config(write(tmp_path, exp=TWO_STAGES), [override])
    assert hint in str(caught.value)


def test_resolved_config_loads_again_and_names_each_origin(tmp_path: Path) -> None:
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


# Stages as a mapping: changes to the base's stages, by name

ROOT = """
name: root
epochs: 9
stages:
  - {name: first, sample_rate: 0.8, optim: {lr: 0.5, weight_decay: 0.1}}
  - {name: second, epochs: 3, schedule: {name: plateau, patience: 4}}
"""
CHANGE = "stages: {second: {schedule: {patience: 1}}, first: {optim: {lr: 0.25}, epochs: 2}}\n"


def test_mapping_changes_the_bases_stages_by_name_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, child=f"base: root.yaml\nname: child\n{CHANGE}", root=ROOT)
    config = load_config(path)
    first, second = config.experiment.stages
    assert (first.name, second.name) == ("first", "second"), "the base's order stays"
    assert (first.epochs, first.sample_rate, first.optim.lr, first.optim.weight_decay) == (2, 0.8, 0.25, 0.1)
    assert (second.epochs, second.schedule.name, second.schedule.patience) == (3, "plateau", 1)
    base = load_config(tmp_path / "root.yaml").experiment.stages
    assert (base[0].optim.lr, base[0].epochs, base[1].schedule.patience) == (0.5, 9, 4)


def test_mapping_changes_what_a_mapping_of_its_base_changed(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        grandchild="base: child.yaml\nname: g\nstages: {first: {epochs: 4}}\n",
        child=f"base: root.yaml\nname: child\n{CHANGE}",
        root=ROOT,
    )
    first, second = load_config(path).experiment.stages
    assert (first.epochs, first.optim.lr, first.sample_rate, second.schedule.patience) == (4, 0.25, 0.8, 1)


def test_origin_of_a_changed_value_is_the_file_that_changed_it(tmp_path: Path) -> None:
    path = write(tmp_path, child=f"base: root.yaml\nname: child\n{CHANGE}", root=ROOT)
    config = load_config(path, ["stages.second.top_k=7"])
    names = {key: Path(origin).name for key, origin in config.origins.items() if key.startswith("stages.")}
    assert names == {
        "stages.first.name": "root.yaml",
        "stages.first.sample_rate": "root.yaml",
        "stages.first.optim.lr": "child.yaml",
        "stages.first.optim.weight_decay": "root.yaml",
        "stages.first.epochs": "child.yaml",
        "stages.second.name": "root.yaml",
        "stages.second.epochs": "root.yaml",
        "stages.second.schedule.name": "root.yaml",
        "stages.second.schedule.patience": "child.yaml",
        "stages.second.top_k": "--set",
    }
    lines = [line.strip() for line in dump_resolved(config).splitlines()]
    assert {"lr: 0.25  # child.yaml", "weight_decay: 0.1  # root.yaml", "epochs: 2  # child.yaml"} <= set(lines)
    assert {"patience: 1  # child.yaml", "patience: 2  # default", "top_k: 7  # --set"} <= set(lines)


@pytest.mark.parametrize("change", ["third: {epochs: 2}", "firts: {epochs: 2}", "first: 2", "first: null"])
def test_change_of_an_unknown_stage_names_file_and_stages(tmp_path: Path, change: str) -> None:
    path = write(tmp_path, child=f"base: root.yaml\nname: child\nstages: {{{change}}}\n", root=ROOT)
    with pytest.raises(InputError) as caught:
        load_config(path)
    message = str(caught.value)
    assert f"child.yaml: stages.{change.split(':')[0]}" in message and "first, second" in message


def test_wrong_value_in_a_change_names_the_file_that_changed_it(tmp_path: Path) -> None:
    path = write(tmp_path, child="base: root.yaml\nname: c\nstages: {first: {optim: {lrr: 1}}}\n", root=ROOT)
    with pytest.raises(InputError, match=r"child\.yaml: unknown key stages\.first\.optim\.lrr; did you mean lr"):
        load_config(path)


def test_mapping_without_stages_to_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"child\.yaml: 'stages' must be a list"):
        load_config(write(tmp_path, child="base: root.yaml\nname: c\nstages: {a: {epochs: 1}}\n", root="seed: 1\n"))


# The shipped configs


def shipped(name: str) -> LoadedConfig:
    return load_config(CONFIGS[0].parent / f"{name}.yaml")


EXPERIMENTS = [path for path in CONFIGS if path.name != "base.yaml"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_every_shipped_config_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.experiment.name == path.stem
    again = load_config(write(tmp_path, again=dump_resolved(config)))
    assert again.experiment == config.experiment
    assert accumulation(config.experiment.stages[0], 1) >= 1


def test_defaults_that_all_share_are_no_experiment_of_their_own(tmp_path: Path) -> None:
    base = CONFIGS[0].parent / "base.yaml"
    with pytest.raises(InputError, match=r"base\.yaml: 'stages' must be a list"):
        load_config(base)
    path = write(tmp_path, exp=f"{base.read_text()}\nname: x\nstages: [{{name: main}}]\n")
    assert load_config(path).experiment.stages[0].optim.clip_norm == 0.1


# The recipes as published. A stage: px, global batch, epochs, early stop, top-k, lr, schedule, sample rate (from, to).
# The first place stops after more than 10 or 12 epochs without a gain, which is an early_stop of 11 or 13.
Stage = tuple[str, int, int, int, int | None, int, float, str, float | None, float | None]


def row(stage: StageConfig) -> Stage:
    return (
        *(stage.name, stage.image_size, stage.global_batch, stage.epochs, stage.early_stop, stage.top_k),
        *(stage.optim.lr, stage.schedule.name, stage.sample_rate, stage.sample_rate_end),
    )


START: Stage = ("start512", 512, 2, 50, 11, 5, 1e-4, "plateau", 0.8, None)
PART0: Stage = ("part0", 1024, 2, 50, 11, 5, 1e-4, "plateau", 0.8, None)
HEAVY: list[Stage] = [
    ("main", 768, 16, 35, None, 3, 1e-4, "restarts", 0.8, 0.22),
    ("second_stage", 768, 16, 15, None, 3, 1e-5, "cosine", 0.4, None),
]


def parts(part1: float, part2: float, second: float) -> list[Stage]:
    return [
        ("part1", 1024, 2, 50, 13, 3, 1e-5, "cosine", part1, None),
        ("part2", 1024, 2, 50, 13, 3, 1e-5, "cosine", part2, None),
        ("second_stage", 1024, 2, 40, 13, 3, 1e-5, "cosine", second, None),
    ]


STAGES: dict[str, list[Stage]] = {
    "recipe_a": [START, PART0, *parts(0.6, 0.4, 0.4)],
    "albunet_valid": [START, PART0, *parts(0.6, 0.4, 0.4)],
    "albunet_public": [START, PART0, *parts(0.4, 0.6, 0.4)],
    "seunet": [START, PART0, *parts(0.6, 0.4, 0.5)],
    "resnet50": [PART0, *parts(0.6, 0.4, 0.5)],
    "recipe_b": [
        ("step006", 512, 32, 20, None, 1, 5e-4, "plateau", 0.5, None),
        ("step007", 1024, 16, 30, None, 1, 5e-4, "plateau", 0.5, None),
        ("step008", 1024, 16, 20, None, 1, 5e-4, "plateau", 0.5, None),
    ],
    "recipe_c": [("main", 512, 8, 40, 10, 1, 1e-4, "multistep", None, None)],
    "recipe_d": [("main", 384, 32, 100, None, 1, 1e-3, "constant", None, None)],
    "recipe_e": HEAVY,
    "heavy_se_resnext50": HEAVY,
    "heavy_se_resnext101": HEAVY,
    "heavy_senet154": HEAVY,
    "second_place": [("main", 1024, 4, 44, None, 3, 1e-4, "constant", 1, None)],
    "second_place_classes": [("main", 768, 16, 44, None, 3, 1e-4, "constant", None, None)],
    "fourth_place": [("cosine", 512, 8, 60, None, 4, 7.5e-5, "cosine", 0.8, 0.22)],
    "eighth_place": [("main", 1024, 16, 100, None, 3, 1e-2, "restarts", None, None)],
    "eighth_place_positives": [("main", 1280, 16, 100, None, 3, 1e-2, "restarts", 1, None)],
    "tenth_place": [
        ("frozen512", 512, 64, 3, None, 3, 1e-3, "constant", 1, None),
        ("at512", 512, 64, 40, None, 3, 1e-4, "plateau", 1, None),
        ("at1024", 1024, 64, 40, None, 3, 1e-4, "plateau", 1, None),
        ("lovasz", 1024, 64, 40, None, 3, 1e-4, "plateau", 1, None),
    ],
}
FIRST_PLACE = ("recipe_a", "albunet_public", "albunet_valid", "seunet", "resnet50")
# Encoder, decoder widths, upsampling, attention, bce : dice : focal.
NETWORKS = {
    "albunet_public": ("albunet", "resnet34", None, (1, 1, 1)),
    "albunet_valid": ("albunet", "resnet34", None, (3, 1, 4)),
    "seunet": ("scse_unet", "se_resnext50_32x4d", None, (3, 1, 4)),
    "resnet50": ("resnet_unet", "resnet50", None, (2, 1, 2)),
    "recipe_c": ("unet", "se_resnext50_32x4d", None, (3, 1, 4)),
    "heavy_se_resnext50": ("unet", "se_resnext50_32x4d", "scse", (3, 1, 4)),
    "heavy_se_resnext101": ("unet", "se_resnext101_32x4d", "scse", (3, 1, 4)),
    "heavy_senet154": ("unet", "senet154", "scse", (3, 1, 4)),
}


def test_every_shipped_recipe_is_written_down_here() -> None:
    assert {path.stem for path in EXPERIMENTS} == {*STAGES, "demo"}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_those_of_the_recipe(name: str) -> None:
    assert [row(stage) for stage in shipped(name).experiment.stages] == STAGES[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_network_and_loss_are_those_of_the_recipe(name: str) -> None:
    experiment = shipped(name).experiment
    model = experiment.model
    *network, weights = NETWORKS[name]
    assert (model.arch, model.encoder, model.decoder_attention_type) == tuple(network)
    assert (model.encoder_weights, model.in_channels, model.decoder_channels) == ("imagenet", 3, None)
    assert model.decoder_interpolation is None
    for stage in experiment.stages:
        loss = stage.loss
        assert (loss.bce, loss.dice, loss.focal, loss.lovasz) == (*weights, 0)
        assert (loss.focal_gamma, loss.dice_over, loss.dice_form, loss.dice_epsilon) == (2, "batch", "linear", 1e-6)


def assert_forms_of_the_first_place(augment: AugmentConfig) -> None:
    """Check the forms of albumentations 0.3.1: borders, elastic distortion, grid, gamma and brightness."""
    assert augment.border == "reflect_101" and augment.distortion.grid_open
    assert augment.distortion.elastic is not None and augment.distortion.elastic.pixels == "input"
    assert (augment.tone.gamma_exponent, augment.tone.brightness_by) == ("1/g", "mean")


@pytest.mark.parametrize("name", FIRST_PLACE)
def test_first_place_recipe_is_as_published(name: str) -> None:
    experiment = shipped(name).experiment
    assert experiment.model.decoder_use_norm is None and experiment.model.classification is None
    for stage in experiment.stages:
        is_second = stage.name == "second_stage"
        is_small = name == "seunet" and is_second
        optim, schedule, augment = stage.optim, stage.schedule, stage.augment
        assert (optim.name, optim.clip_norm, optim.weight_decay) == ("adam", 0.1, 5e-7 if is_small else 5e-6)
        if schedule.name == "plateau":
            assert (schedule.watch, schedule.factor, schedule.patience) == ("score", 0.1, 2)
            assert (schedule.threshold, schedule.min_lr) == (1e-7, 1e-7)
        else:
            assert (schedule.t_max, schedule.min_lr) == (8, 1e-8 if is_small else 1e-7)
        assert stage.always_train == is_second
        assert stage.repeat == ("until_no_gain" if stage.name in ("part1", "part2") else None)
        frozen = 2 if stage.name == "part0" and name != "resnet50" else 0
        assert stage.freeze_encoder_epochs == frozen
        assert stage.init_from == "best_so_far"
        assert schedule.warmup_steps == 0 and optim.ema_decay is None
        moved = augment.shift_scale_rotate
        assert (augment.hflip, moved.p, moved.shift, moved.scale, moved.rotate) == (0.5, 0.5, 0.0625, 0.1, 45)
        assert (augment.tone.p, augment.tone.contrast, augment.tone.brightness) == (0.3, 0.2, 0.2)
        assert augment.tone.gamma == (0.8, 1.2)
        assert_forms_of_the_first_place(augment)
        bent = augment.distortion
        assert bent.elastic is not None and bent.optical is not None
        assert (bent.p, bent.grid, bent.optical.distort, bent.optical.shift) == (0.3, 0.3, 2, 0.5)
        assert (bent.elastic.alpha, bent.elastic.sigma, bent.elastic.alpha_affine) == (120, 6, 3.6)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = experiment.data
    assert (data.mean, data.std) == (imagenet if name == "resnet50" else ((0, 0, 0), (1, 1, 1)))


def test_silver_medal_recipe_is_as_published() -> None:
    experiment = shipped("recipe_b").experiment
    assert (experiment.model.arch, experiment.model.encoder) == ("unet", "resnet34")
    for stage in experiment.stages:
        schedule, loss = stage.schedule, stage.loss
        assert (schedule.watch, schedule.patience, schedule.factor) == ("loss", 3, 0.1)
        assert (stage.optim.name, stage.optim.clip_norm, loss.dice_epsilon) == ("adam", None, 1)
        given = (loss.bce, loss.dice, loss.focal, loss.focal_gamma, loss.dice_form)
        assert given == ((1, 1, 0, 2, "linear") if stage.name == "step008" else (0, 1, 10, 2, "log"))
        assert stage.augment.distortion.p == 0.3
        assert_forms_of_the_first_place(stage.augment)
        # 16 x 2 at 512 px, 4 x 4 at 1024 px
        assert (stage.micro_batch, accumulation(stage, 1)) == ((16, 2) if stage.name == "step006" else (4, 4))


def test_top_100_recipe_is_as_published() -> None:
    (stage,) = shipped("recipe_c").experiment.stages
    assert stage.schedule.milestones == (3, 5, 6, 7, 8, 9, 10, 11, 13, 15)
    assert (stage.schedule.factor, stage.optim.name, stage.eval_batch) == (0.75, "adam", 16)
    augment = stage.augment
    moved = augment.shift_scale_rotate
    assert (augment.hflip, moved.shift, moved.scale, moved.rotate) == (0.5, 0, 0, 10)
    assert (augment.tone.p, augment.distortion.p, augment.border) == (0, 0, "reflect_101")


def test_baseline_recipe_is_as_published() -> None:
    experiment = shipped("recipe_d").experiment
    assert (experiment.model.arch, experiment.model.in_channels) == ("fcn", 1)
    assert experiment.model.fcn == FcnConfig(widths=(32, 64, 128), norm=True, skips=True)
    assert (experiment.data.mean, experiment.data.std) == ((0, 0, 0), (1, 1, 1))
    (stage,) = experiment.stages
    assert (stage.optim.name, stage.optim.clip_norm, stage.optim.clip_value) == ("adam", None, 0.9)
    assert (stage.loss.bce, stage.loss.dice, stage.loss.focal, stage.loss.dice_epsilon) == (1, 1, 0, 1e-5)
    augment = stage.augment
    assert (augment.hflip, augment.shift_scale_rotate.p, augment.tone.p, augment.distortion.p) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["recipe_e", "heavy_se_resnext50", "heavy_se_resnext101", "heavy_senet154"])
def test_gold_medal_recipe_uses_the_gold_medals_ideas(name: str) -> None:
    experiment = shipped(name).experiment
    main, second = experiment.stages
    assert experiment.model.classification is not None and not experiment.model.sync_batch_norm
    assert (main.schedule.t_max, main.schedule.t_mult) == (5, 2)
    assert main.epochs == 5 + 10 + 20, "whole periods of the warm restarts"
    assert second.schedule.t_max is None and second.schedule.warmup_steps == 0
    assert (main.always_train, second.always_train) == (False, True)
    for stage in (main, second):
        assert stage.optim.ema_decay == 0.99 and stage.loss.classification > 0 and stage.size_classes is not None
        assert_forms_of_the_first_place(stage.augment)
        assert (stage.micro_batch, accumulation(stage, 1)) == (16, 1), "one fold per GPU"


def moves(augment: AugmentConfig) -> tuple[float, ...]:
    """Return the flip's probability, then that of shift, scale and rotation, and their ranges."""
    moved = augment.shift_scale_rotate
    return augment.hflip, moved.p, moved.shift, moved.scale, moved.rotate


def test_second_place_is_as_published() -> None:
    experiment = shipped("second_place").experiment
    assert (experiment.model.arch, experiment.model.encoder) == ("unet", "se_resnext50_32x4d")
    (stage,) = experiment.stages
    loss, augment = stage.loss, stage.augment
    assert (loss.bce, loss.dice, loss.focal, stage.micro_batch, stage.eval_batch) == (0, 1, 0, 4, 2)
    assert moves(augment) == (0.5, 1, 0.2, 0.2, 20) and augment.border == "constant"
    # One of three in half of the draws.
    assert augment.tone.p + augment.clahe.p == 0.5 and augment.clahe.p == pytest.approx(0.5 / 3, abs=1e-4)
    assert (augment.tone.gamma, augment.clahe.clip, augment.clahe.tiles) == ((0.6, 1.2), 4, 4)
    others = overrides_in_comments(CONFIGS[0].parent / "second_place.yaml")
    assert [each for each in others if "encoder" in each] == [
        "model.encoder=se_resnext101_32x4d",
        "model.encoder=efficientnet-b3",
        "model.encoder=efficientnet-b5",
    ]
    classes = shipped("second_place_classes").experiment
    assert classes.model.classification is not None
    (stage,) = classes.stages
    assert (stage.loss.bce, stage.loss.dice, stage.loss.focal, stage.loss.classification) == (1, 0, 0, 1)
    assert (stage.micro_batch, stage.eval_batch, stage.augment) == (16, 8, augment)


def test_fourth_place_is_as_published() -> None:
    experiment = shipped("fourth_place").experiment
    model = experiment.model
    assert (model.arch, model.encoder, model.decoder_channels) == ("resnet_unet", "resnet34", None)
    assert model.classification is not None
    (stage,) = experiment.stages
    assert (stage.eval_image_size, stage.freeze_batch_norm, stage.sample_rate_schedule) == (768, True, "linear")
    assert (stage.optim.name, stage.optim.weight_decay, stage.optim.clip_norm) == ("adam", 1e-5, 0.5)
    assert (stage.schedule.t_max, stage.schedule.min_lr) == (8, 1e-6)
    loss, augment = stage.loss, stage.augment
    # README: 2.7 BCE + 0.9 Dice + 0.1 BCE of the class
    assert (loss.bce, loss.dice, loss.focal, loss.classification) == (2.7, 0.9, 0, 0.1)
    assert (loss.dice_epsilon, loss.dice_over, loss.dice_films) == (1e-5, "batch", "all")
    assert moves(augment) == (0.5, 0.5, 0.2, 0.2, 20) and augment.border == "constant"
    elastic = augment.distortion.elastic
    assert elastic is not None and augment.distortion.p == 0.3 and augment.distortion.grid_open
    # Pixels of a film of 1024 px, seen at 768 px; the amplitude's noise is that of a pixel.
    assert (elastic.alpha, elastic.sigma, elastic.alpha_affine) == (120 * 0.75**2, 6 * 0.75, 3.6 * 0.75)
    assert (augment.tone.p, augment.tone.gamma, augment.tone.brightness_by) == (0.3, None, "mean")


def test_eighth_place_is_as_published() -> None:
    for name in ("eighth_place", "eighth_place_positives"):
        experiment = shipped(name).experiment
        model = experiment.model
        assert (model.arch, model.encoder, model.norm, model.norm_groups) == (
            "deeplabv3plus",
            "resnet50",
            "group_ws",
            32,
        )
        (stage,) = experiment.stages
        optim, schedule, augment = stage.optim, stage.schedule, stage.augment
        assert (optim.name, optim.momentum, optim.weight_decay, optim.clip_norm) == ("sgd", 0.9, 1e-5, None)
        # Five snapshots of 20 epochs.
        assert (schedule.t_max, schedule.t_mult, schedule.min_lr, stage.epochs) == (20, 1, 1e-4, 5 * 20)
        assert moves(augment) == (0, 0.25, 0.0625, 0.15, 10) and augment.border == "constant"
        assert augment.tone.p == 3 * augment.clahe.p == 3 / 16
        accumulated = accumulation(stage, 1)
        assert (stage.micro_batch, accumulated) == ((4, 4) if name == "eighth_place" else (1, 16))
    loss = shipped("eighth_place").experiment.stages[0].loss
    assert (loss.bce, loss.dice, loss.focal) == (4.9, 0, 0)
    # Of the competition's labelled films, 2,379 of 10,675 are positive, with a median area of 8,630 of 1024² pixels.
    share = 2379 / 10_675 * 8630 / 1024**2
    assert loss.bce_positive_weight == round(0.1 / share / (4.9 / (1 - share)))
    loss = stage.loss
    assert (loss.bce, loss.dice, loss.focal, loss.bce_positive_weight, loss.dice_epsilon) == (0, 1, 0, 1, 1e-12)


def test_tenth_place_is_as_published() -> None:
    experiment = shipped("tenth_place").experiment
    assert (experiment.model.arch, experiment.model.encoder) == ("unet", "se_resnet101")
    assert (experiment.data.mean, experiment.data.std) == ((0.49,) * 3, (0.235,) * 3)
    for stage in experiment.stages:
        is_small, loss, augment = stage.image_size == 512, stage.loss, stage.augment
        assert (stage.micro_batch, accumulation(stage, 1)) == ((8, 8) if is_small else (2, 32))
        assert stage.freeze_encoder_epochs == (3 if stage.name == "frozen512" else 0)
        assert (loss.bce, loss.dice, loss.focal, loss.lovasz) == (
            (0, 0, 0, 1) if stage.name == "lovasz" else (1, 0.5, 0, 0)
        )
        if stage.schedule.name == "plateau":
            assert (stage.schedule.watch, stage.schedule.factor, stage.schedule.patience) == ("score", 0.5, 3)
        assert moves(augment) == (0.5, 1, 0.1, 0.1, 15) and augment.border == "constant"
        assert augment.distortion.p == pytest.approx(1 - 0.8**2) and augment.distortion.optical is None
        assert [round((255 * sigma) ** 2) for sigma in augment.noise.sigma] == [10, 50]


def overrides_in_comments(path: Path) -> tuple[str, ...]:
    """Return the options of a config's commented `--set` lines."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("#   --set")]
    return tuple(option.strip() for line in lines for option in line.removeprefix("#   ").split("--set ")[1:])


def test_recipe_e_states_its_form_for_eight_gpus() -> None:
    path = CONFIGS[0].parent / "recipe_e.yaml"
    one, eight = load_config(path).experiment, load_config(path, overrides_in_comments(path)).experiment
    for before, after in zip(one.stages, eight.stages, strict=True):
        assert (after.global_batch, accumulation(after, 8)) == (8 * before.global_batch, 1)
        assert after.optim.lr == pytest.approx(before.optim.lr * 8**0.5, rel=0.02)
        assert before.optim.ema_decay is not None
        assert after.optim.ema_decay == pytest.approx(before.optim.ema_decay**8, abs=1e-3)


def test_recipe_a_states_its_form_for_two_gpus() -> None:
    path = CONFIGS[0].parent / "recipe_a.yaml"
    experiment = load_config(path, overrides_in_comments(path)).experiment
    assert experiment.model.sync_batch_norm
    assert all((stage.global_batch, accumulation(stage, 2)) == (2, 1) for stage in experiment.stages)
    assert all(stage.loss.dice_scope == "global" for stage in experiment.stages)


@pytest.mark.parametrize("content", [b"name: [\n", b"\x89PNG\r\n\x1a\n", b"name: \xff\n"])
def test_file_that_is_not_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exp.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"exp\.yaml: not valid YAML"):
        load_config(path)


def test_record_of_a_run_reads_no_other_file(tmp_path: Path) -> None:
    """A run folder comes from anybody; a base would let its config.yaml name any file of this machine."""
    path = tmp_path / "config.yaml"
    path.write_text("base: ../secret.yaml\nname: x\nstages: [{name: a}]\n")
    for read in (lambda: load_config(path, is_record=True), lambda: read_tree(path, is_record=True)):
        with pytest.raises(InputError, match=r"config\.yaml: has a 'base', which the record of a run never has"):
            read()


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_config_without_an_end_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"#" * (17 << 20))
    with pytest.raises(InputError, match=r"config\.yaml: (is a pipe|larger than 16 MiB)"):
        load_config(path)
