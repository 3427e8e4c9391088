"""An ONNX graph predicts in onnxruntime what its bundle predicts, and holds all that its user must know."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from film_files import coarse_noise, write_film
from images import decode
from tiny_runs import ALONE, MIXED, Trained

from pneumo_dist.cli.app import app
from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.maps.store import Predictions
from pneumo_dist.network.build import build_model
from pneumo_dist.predict import onnx_file
from pneumo_dist.predict.bundle import read_bundle, write_bundle
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork
from pneumo_dist.predict.new_films import NewFilmOptions, film_shards, find_films
from pneumo_dist.predict.onnx_file import export_bundle
from pneumo_dist.predict.onnx_graph import EnsembleGraph
from pneumo_dist.predict.onnx_trace import onnx_model
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.stacking import Stacking, feature_names
from pneumo_dist.scoring.stored import rule_content
from pneumo_dist.scoring.triplet import Triplet
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards
from shards.dicom.rules import FilmRules
from shards.errors import InputError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/onnx.md").read_text()
# Two inputs: 64 px with one channel, and 32 px with three and another normalisation.
SMALL: list[dict[str, Any]] = [{**member, "image_size": None} for member in MIXED[:2]]


def films_of(paths: Sequence[Path], folder: Path, side: int) -> Shards:
    """Build DICOM files as new films of a side."""
    shards, refused = film_shards(find_films(paths), folder, NewFilmOptions(side, FilmRules(any_film=True)))
    assert shards is not None and not refused
    return shards


def phantoms(folder: Path) -> list[Path]:
    """Write three films of other shapes and sides than the networks take."""
    shapes = [(96, 96), (130, 96), (40, 50)]
    return [
        write_film(folder / f"film{number}.dcm", coarse_noise(number, 130)[: shape[0], : shape[1]])
        for number, shape in enumerate(shapes)
    ]


def squares(shards: Shards) -> npt.NDArray[np.uint8]:
    """Return the films as the graph takes them."""
    return np.stack([decode(shards.read(row, "image")) for row in range(len(shards))])


def session_of(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def predicted(ensemble: Ensemble, shards: Shards, folder: Path) -> Predictions:
    """Predict new films with the bundle, as `predict --set amp=float32` does."""
    data = ensemble.data.model_copy(update={"loader": "torch"})
    predict(replace(ensemble, amp="float32", data=data), shards, folder, ALONE, PredictOptions())
    return Predictions(folder)


def check_equal(path: Path, bundle: Path, shards: Shards, folder: Path) -> list[npt.NDArray[np.float32]]:
    """Check that a graph predicts what its bundle predicts, to a level, and return the graph's outputs."""
    ensemble, _ = read_bundle(bundle)
    films, session = squares(shards), session_of(path)
    outputs: list[npt.NDArray[np.float32]] = session.run(None, {"film": films})
    row_of = {key: row for row, key in enumerate(shards.column("key"))}
    stored = predicted(ensemble, shards, folder)
    assert len(stored) == len(films)
    for row, p8 in stored:
        number = row_of[row["key"]]
        levels = np.rint(outputs[0][number] * 255)
        assert levels.shape == p8.shape == (ensemble.image_size,) * 2
        assert np.abs(levels - p8).max() <= 1 and p8.max() - p8.min() > 5
        if len(outputs) > 1:
            assert abs(outputs[1][number] - row["class_probability"]) < 1e-5
        # The number of films is free.
        alone = session.run(None, {"film": films[number][None]})
        assert all(np.allclose(one[0], all_[number], atol=1e-5) for one, all_ in zip(alone, outputs, strict=True))
    return outputs


def rule_for(ensemble: Ensemble) -> Rule:
    """Return a rule whose masks have parts of all sizes, whatever these barely trained networks predict."""
    networks = [network.read().build(network.name) for network in ensemble.networks]
    film = torch.from_numpy(coarse_noise(0, ensemble.film_size))[None]
    with torch.inference_mode():
        maps = EnsembleGraph(ensemble, networks)(film)[0]
    top, bottom = np.quantile(maps.numpy(), [0.9, 0.7]).tolist()
    return Rule(Triplet(top, 30, bottom), smallest_part=20)


@pytest.fixture(scope="module")
def small(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of two architectures and two inputs, b, and its graph, b.onnx."""
    folder = tmp_path_factory.mktemp("small")
    ensemble = trained.ensemble(members=SMALL)
    write_bundle(folder / "b", ensemble, rule_for(ensemble), None)
    (line,) = re.findall("^    python -m (pneumo_dist export .*)$", PAGE, re.MULTILINE)
    names = {"blend.bundle": folder / "b", "blend.onnx": folder / "b.onnx"}
    arguments = [str(names.get(word, word)) for word in shlex.split(line)[1:]]
    assert run(app, "pneumo_dist", arguments) == EXIT_DONE
    return folder


def test_graph_predicts_phantoms_as_its_bundle_does(small: Path, tmp_path: Path) -> None:
    shards = films_of(phantoms(tmp_path / "films"), tmp_path / "shards", 64)
    outputs = check_equal(small / "b.onnx", small / "b", shards, tmp_path / "predictions")
    assert len(outputs) == 1


def test_graph_is_valid_and_says_what_it_leaves_to_its_user(small: Path) -> None:
    assert sorted(path.name for path in small.iterdir()) == ["b", "b.onnx"]
    onnx.checker.check_model(str(small / "b.onnx"), full_check=True)
    content = (small / "b.onnx").read_bytes()
    assert str(ROOT).encode() not in content and b".py" not in content
    texts = session_of(small / "b.onnx").get_modelmeta().custom_metadata_map
    ensemble, rule = read_bundle(small / "b")
    assert json.loads(texts["rule"]) == rule_content(rule)
    assert json.loads(texts["preprocessing"])["side"] == 64
    assert json.loads(texts["networks"]) == [network.name for network in ensemble.networks]
    assert texts["format"] == "pneumo_dist-onnx" and "not for diagnosis" in texts["model_card"]


@pytest.mark.parametrize("is_stacked", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_program_of_the_page_makes_the_masks_of_segment(small: Path, tmp_path: Path, is_stacked: bool) -> None:
    (program,) = re.findall("^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "segment.py").write_text(program)
    paths = phantoms(tmp_path / "films")
    shards = films_of(paths, tmp_path / "shards", 64)
    (maps,) = session_of(small / "b.onnx").run(None, {"film": squares(shards)})
    _, rule = read_bundle(small / "b")
    model = onnx.load(str(small / "b.onnx"))
    if is_stacked:  # the same graph with another rule; the gate opens for one film or two
        names = feature_names((0.1, 0.5), rule.triplet.bottom, with_class=False)
        gate = Stacking(names, (1.0,) * 5, (2.0,) * 5, (0.3, 0.2, 0.1, -0.1, 0.2), 0.1, 0.5)
        films = [label_map(np.rint(maps[each] * 255).astype(np.uint8), shards.grid(each)) for each in range(3)]
        middle = float(np.mean(sorted(gate.film_probability(film, None) for film in films)[1:]))
        rule = Rule(Triplet(0, 0, rule.triplet.bottom), 20, stacking=replace(gate, threshold=middle))
        (prop,) = [each for each in model.metadata_props if each.key == "rule"]
        prop.value = json.dumps(rule_content(rule))
    onnx.save(model, str(tmp_path / "b.onnx"))
    called = 0
    for row, path in enumerate(sorted((tmp_path / "films").iterdir())):
        number = [str(each) for each in shards.column("image_id")].index(path.stem)
        p8 = np.rint(maps[number] * 255).astype(np.uint8)
        expected = apply_rule(label_map(p8, shards.grid(number)), rule)
        out = tmp_path / f"{row}.png"
        command = [sys.executable, *map(str, [tmp_path / "segment.py", tmp_path / "b.onnx", path, out])]
        subprocess.run(command, check=True, env={"PATH": os.environ["PATH"]}, cwd=tmp_path)
        found = cv2.imread(str(out), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(found, expected * 255)
        called += int(expected.any() and not expected.all())
    assert called == 1 if is_stacked else called


def test_graph_that_predicts_something_else_is_not_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = onnx_file._run
    monkeypatch.setattr(onnx_file, "_run", lambda *arguments: [each + 0.005 for each in whole(*arguments)])
    with pytest.raises(InputError, match=r"onnxruntime gives other maps than torch \(by 1\.2"):
        export_bundle(small / "b", tmp_path / "g.onnx", most_inline=1000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_large_weights_are_in_a_second_file_that_the_next_export_replaces(small: Path, tmp_path: Path) -> None:
    (tmp_path / "g.onnx.0123456789abcdef.data").write_bytes(b"of an earlier export")
    (tmp_path / "h.onnx.0123456789abcdef.data").write_bytes(b"of another graph")
    files, levels = export_bundle(small / "b", tmp_path / "g.onnx", most_inline=1000)
    assert levels < 0.01 and files[0] == tmp_path / "g.onnx"
    assert {path.name for path in tmp_path.iterdir()} == {
        *(each.name for each in files),
        "h.onnx.0123456789abcdef.data",
    }
    assert len(files) == 2 and files[0].stat().st_size < (small / "b.onnx").stat().st_size
    film = np.random.default_rng(0).integers(0, 256, (2, 64, 64), np.uint8)
    inline, outside = (session_of(path).run(None, {"film": film}) for path in (small / "b.onnx", files[0]))
    np.testing.assert_array_equal(inline[0], outside[0])


def test_values_that_are_not_finite_and_bad_paths_are_named(
    trained: Trained, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--bundle", str(small / "b"), "--onnx", str(tmp_path)]
    assert run(app, "pneumo_dist", arguments) == EXIT_USAGE
    assert "is a folder; give the file to write" in capsys.readouterr().err
    ensemble, rule = trained.ensemble(members=SMALL[:1]), Rule(Triplet(0.5, 30, 0.5))
    trained_network = ensemble.networks[0].read()
    weights = {
        name: value * torch.nan if value.is_floating_point() else value
        for name, value in trained_network.weights.items()
    }
    broken = replace(ensemble.networks[0], read=lambda: replace(trained_network, weights=weights))
    write_bundle(tmp_path / "broken", replace(ensemble, networks=(broken,)), rule, None)
    with pytest.raises(InputError, match="not finite"):
        export_bundle(tmp_path / "broken", tmp_path / "g.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.fixture(scope="module")
def mixed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `small`, with three inputs, a classification head and three scales."""
    folder = tmp_path_factory.mktemp("mixed")
    tta = {"scales": [1, 1.5, 0.5], "scale_weights": [2, 1, 1]}
    rule = Rule(Triplet(0.5, 30, 0.5), gate=0.2)
    write_bundle(folder / "b", trained.ensemble(members=MIXED, tta=tta, image_size=64), rule, None)
    export_bundle(folder / "b", folder / "b.onnx")
    return folder


@pytest.mark.slow
def test_heads_and_scales_are_in_the_graph(mixed: Path, tmp_path: Path) -> None:
    shards = films_of(phantoms(tmp_path / "films"), tmp_path / "shards", 96)
    assert len(check_equal(mixed / "b.onnx", mixed / "b", shards, tmp_path / "predictions")) == 2


@pytest.mark.slow
def test_members_have_their_own_views_and_share_weights_in_the_graph(trained: Trained, tmp_path: Path) -> None:
    members = [
        {"experiment": "plain", "top_k": 1, "tta": {"hflip": False, "scales": [1.5]}},
        {"experiment": "plain", "top_k": 1, "weight": 2},
    ]
    sizes = []
    for name, chosen in (("both", members), ("one", members[1:])):
        write_bundle(tmp_path / name, trained.ensemble(members=chosen), Rule(Triplet(0.5, 30, 0.5)), None)
        export_bundle(tmp_path / name, tmp_path / f"{name}.onnx")
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        sizes.append(sum(onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer if len(each.dims) == 4))
    assert sizes[0] == sizes[1] > 0, "kernels of the convolutions"
    shards = films_of(phantoms(tmp_path / "films"), tmp_path / "shards", 64)
    check_equal(tmp_path / "both.onnx", tmp_path / "both", shards, tmp_path / "predictions")


@pytest.mark.slow
def test_real_films_are_predicted_alike(mixed: Path, tmp_path: Path) -> None:
    folder = Path(os.environ.get("PNEUMO_REAL_DATA", ROOT / "../shared/data")).resolve() / "siim_sample"
    if not folder.is_dir():
        pytest.skip("no real films here: point PNEUMO_REAL_DATA at their folder")
    shards = films_of([folder], tmp_path / "shards", 96)
    assert len(shards) == 10
    check_equal(mixed / "b.onnx", mixed / "b", shards, tmp_path / "predictions")


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"arch": "scse_unet", "encoder": "se_resnext50_32x4d"},
        {"arch": "deeplabv3plus", "encoder": "resnet18"},
        {"encoder": "resnet18", "decoder_use_norm": "instancenorm", "decoder_interpolation": "bicubic"},
        {"encoder": "resnet18", "norm": "group_ws"},
    ],
)
def test_other_architectures_have_graphs_of_the_same_values(model: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(model)
    network = build_model(config, pretrained=False).eval()
    network_input = NetworkInput(128, 3, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))

    def read() -> TrainedNetwork:
        raise AssertionError("the network is given")

    part = EnsembleNetwork("network", 0, 0, 1.0, network_input, config, read)
    ensemble = Ensemble("x", (part,), 128, DataConfig(), 1, TtaConfig())
    content = onnx_ir.to_proto(onnx_model(ensemble, [network])).SerializeToString()
    films = np.random.default_rng(0).integers(0, 256, (3, 128, 128), np.uint8)
    (found,) = onnxruntime.InferenceSession(content).run(None, {"film": films})
    with torch.inference_mode():
        (expected,) = EnsembleGraph(ensemble, [network])(torch.from_numpy(films))
    assert np.abs(found - expected.numpy()).max() < 1e-4 and expected.std() > 1e-4
