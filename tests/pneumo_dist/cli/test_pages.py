"""The commands of pneumo-dist run as README.md and docs/ write them, on small networks: a config's name is a file here.

The pages with other files, or with results of their own, are run beside what they describe: docs/commands.md.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from builders import tiny_experiment
from film_files import noise, write_film
from tiny_runs import PLAIN, Trained
from tools.commands import ROOT, commands_of

from pneumo_dist.cli.app import app
from pneumo_dist.config.load import load_config
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.maps.store import Predictions
from pneumo_dist.network import build
from pneumo_dist.runs.checkpoint import load_checkpoint
from shards.console import EXIT_DONE, run


def lines_of(page: str, command: str, **changes: str) -> list[list[str]]:
    """Return a page's lines of one command, with some words changed."""
    found = [each.words() for each in commands_of(ROOT / page)]
    found = [words[1:] for words in found if words[0] == "pneumo-dist" and words[1] == command]
    return [[changes.get(word, word) for word in words] for words in found]


def must(words: list[str], *more: str) -> None:
    assert run(app, "pneumo-dist", [*words, *more]) == EXIT_DONE, words


@pytest.fixture
def place(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a trained experiment's config under the pages' names, its shards and a copy of its run."""
    monkeypatch.chdir(tmp_path)
    for name in ("C", "seunet", "albunet_valid", "recipe_a_first"):
        Path(name).write_text(PLAIN.model_dump_json())
    shutil.copytree(trained.shards.folder, "SHARDS")
    shutil.copytree(trained.runs / "plain", "RUNS/plain", symlinks=True)
    return tmp_path


def test_the_commands_of_inference_run(place: Path, trained: Trained) -> None:
    write_film(Path("FILM.dcm"), noise(64, 64))
    write_film(Path("DIR/film.dcm"), noise(70, 64, seed=1))
    ids = trained.shards.column("image_id")[trained.shards.indices("test")]
    Path("sample.csv").write_text("ImageId,EncodedPixels\n" + "".join(f"{each},-1\n" for each in reversed(ids)))
    page = "docs/inference.md"
    predict, of_candidate, of_bundle = lines_of(page, "predict")
    must(predict, "--cpu")
    must(of_candidate, "--cpu")
    (select,) = lines_of(page, "select")
    must(select, "--steps", "2")
    for split, name in (("train", "oof.csv"), ("test", "test.csv")):
        known = trained.shards.column("image_id")[trained.shards.indices(split)]
        cells = (f"{each},0.{number}\n" for number, each in enumerate(known, 1))
        Path(name).write_text("image_id,probability\n" + "".join(cells))
    (tune, joint, tune_outside), (submit_outside, submit) = lines_of(page, "tune"), lines_of(page, "submit")
    must([*predict[:-1], "test"], "--cpu")
    must(tune_outside)
    must(submit_outside)
    must(joint)
    must(tune)
    must(submit)
    (average,) = lines_of(page, "average")
    must(average, "--cpu")
    must(of_bundle, "--cpu")
    (segment,) = lines_of(page, "segment")
    must(segment, "--cpu")
    rows = Path("RUNS/plain/test/submission.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == [str(each) for each in reversed(ids)]
    assert len(Predictions(Path("RUNS/plain/oof/predictions"))) == 12 and len(Predictions(Path("PREDICTIONS"))) == 1
    assert json.loads(Path("DIR/FILM.findings.json").read_text())["film"] == "FILM.dcm"
    # The README leaves the shards away, and has another config.
    Path("siim").mkdir()
    Path("RUNS").rename("siim/runs")
    Path("blend.bundle").unlink()
    (words,) = lines_of("README.md", "average")
    must(words, "--cpu")
    assert Path("blend.bundle").exists()


@pytest.mark.slow
def test_the_commands_of_the_report_run(place: Path, trained: Trained) -> None:
    ids = [str(each) for each in trained.shards.column("image_id")]
    Path("sites.csv").write_text("image_id,site\n" + "".join(f"{each},{each[-1]}\n" for each in ids))
    (predict, *_), (tune, *_) = lines_of("docs/inference.md", "predict"), lines_of("docs/inference.md", "tune")
    must(predict, "--cpu")
    must(tune)
    shutil.copytree("RUNS/plain", "RUNS/resnet50", symlinks=True)
    report, against, table = lines_of("docs/report.md", "report")
    for words, head in ((report, ""), (against, "resnet50"), (table, "Site")):
        must(words)
        text = Path("RUNS/plain/report.html").read_text()
        assert head in text and ("Site" in text) == (words is table)


def test_the_commands_of_reproduce_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path("albunet_1024_fold0.pth")
    torch.save(load_checkpoint(Path("RUNS/plain/fold0/main/checkpoints/best"))["model"], weights)
    shutil.rmtree("RUNS")
    digest = f"init.sha256={hashlib.sha256(weights.read_bytes()).hexdigest()}"
    plan, start = lines_of("docs/reproduce.md", "train", **{"init.sha256=SHA256": digest})
    assert digest in start
    must(plan, "--cpu")
    assert len(re.findall(r" steps .*, 0\.00 h", capsys.readouterr().out)) == 2 and not Path("RUNS").exists()
    must(start, "--cpu", "--set", "epochs=1")
    assert "albunet_1024_fold0.pth" in capsys.readouterr().out and Path("RUNS/plain/fold0/main").is_dir()

    # Fetched weights, from a hub that has random ones.
    asked, create = list[str | None](), build._create

    def created(config: ModelConfig, weights: str | None, in_channels: int) -> torch.nn.Module:
        asked.append(weights)
        return create(config, None, in_channels)

    monkeypatch.setattr(build, "_create", created)
    model = {"arch": "unet", "encoder": "tu-mobilenetv3_small_050", "decoder_channels": (8, 8, 8, 8, 8)}
    seunet = tiny_experiment(name="seunet", model={**model, "encoder_weights": "imagenet"})
    Path("seunet").write_text(seunet.model_dump_json())
    (fetch,) = lines_of("docs/reproduce.md", "fetch-weights")
    must(fetch)
    assert asked == ["imagenet"]
    options = capsys.readouterr().out.splitlines()[-1].split()
    model_config = load_config(Path("seunet"), options[1::2]).experiment.model
    assert options[0::2] == ["--set"] * 3 and model_config.encoder_weights is None
    assert build.build_model(model_config, pretrained=True) is not None


def test_the_command_of_input_draws_a_batch(place: Path) -> None:
    (words,) = lines_of("docs/input.md", "show-batch")
    must(words)
    assert Path("batch.png").read_bytes().startswith(b"\x89PNG")


def test_the_inline_commands_of_the_readme_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("siim").mkdir()
    Path("SHARDS").rename("siim/shards")
    (init,), (train,) = lines_of("README.md", "init-config"), lines_of("README.md", "train")
    must(init, "--cpu")
    capsys.readouterr()
    rest = train[train.index("…") + 1 :]
    must(["train", "--config", "mine.yaml", "--shards", "siim/shards", "--runs", "new", "--fold", "0", "--cpu", *rest])
    assert "name: mine" in capsys.readouterr().out and not Path("new").exists()
