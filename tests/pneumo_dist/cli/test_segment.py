"""The command segment: DICOM, PNG and JPEG films, folders of them, and what it writes of each."""

import io
import json
import re
import shlex
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from film_files import noise, write_film
from tiny_runs import Trained

from pneumo_dist.cli.app import app
from pneumo_dist.predict import new_films
from pneumo_dist.predict.bundle import write_bundle
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.console import EXIT_DONE, EXIT_USAGE, run


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "plain.bundle"
    write_bundle(path, trained.ensemble(), Rule(Triplet(0.5, 9, 0.4)), None)
    return path


def line_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail, and return the line that it prints."""
    assert run(app, "pneumo_dist", [str(argument) for argument in arguments]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    return line


def save(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def test_unreadable_films_are_named_and_the_others_segmented(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    film, text = write_film(tmp_path / "film.dcm", noise(64, 64)), tmp_path / "text.dcm"
    text.write_text("no film")
    line = line_of(capsys, "segment", "--cpu", text, "--bundle", bundle, "--out", out)
    assert line.startswith(f"error: {text}: refused, ") and not out.exists()
    arguments = ["segment", "--cpu", film, text, "--bundle", bundle, "--out", out]
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_USAGE
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.out.count("\n") == 1
    assert sorted(path.name for path in out.iterdir()) == [
        "film.findings.json",
        *(f"film.{kind}" for kind in ("mask.png", "overlay.png", "seg.dcm")),
    ]


def test_segment_keeps_films_beside_its_output_and_removes_those_of_a_killed_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results/masks"
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    killed, other = out.with_name(".masks.films.0.tmp"), out.with_name(".other.films.0.tmp")
    for folder in (killed, other):
        (folder / "films").mkdir(parents=True)
        (folder / "films/test-00000.tar").write_bytes(b"pixels")
    real, used = new_films.film_shards, list[tuple[Path, int, bool]]()

    def noted(paths: Any, folder: Path, *more: Any, **options: Any) -> Any:
        scratch = folder.parent
        used.append((scratch, stat.S_IMODE(scratch.stat().st_mode), (scratch / "films").exists()))
        return real(paths, folder, *more, **options)

    monkeypatch.setattr("pneumo_dist.output.segmenter.film_shards", noted)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    segment = ["segment", "--cpu", film, "--bundle", bundle, "--out", out]
    assert run(app, "pneumo_dist", list(map(str, segment))) == EXIT_DONE
    assert used == [(killed, 0o700, False)]
    assert sorted(path.name for path in out.parent.iterdir()) == [other.name, "masks"]


def test_pictures_of_every_kind_have_masks_on_their_own_grid(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    grey, folder, out = noise(90, 70), tmp_path / "in", tmp_path / "out"
    pixels = {
        "grey.png": grey,
        "deep.png": grey.astype(np.uint16) * 257,
        "rgb.png": cv2.merge([grey] * 3),
        "rgba.png": cv2.merge([*[grey] * 3, np.full_like(grey, 255)]),
        "deep rgb.png": cv2.merge([grey.astype(np.uint16) * 257] * 3),
    }
    for name, values in pixels.items():
        save(folder / name, values)
    save(folder / "lossy.JPG", grey)
    assert run(app, "pneumo_dist", ["segment", "--cpu", str(folder), "--bundle", str(bundle), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    lines = {line["film"]: line for line in map(json.loads, printed.out.splitlines())}
    assert printed.err == "" and lines.keys() == {*pixels, "lossy.JPG"}
    first = cv2.imread(str(out / "grey.mask.png"), cv2.IMREAD_UNCHANGED)
    assert first is not None and set(np.unique(first)) <= {0, 255}
    for name, line in lines.items():
        assert set(line["files"]) == {"mask", "overlay", "findings"}
        mask = cv2.imread(str(out / line["files"]["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask is not None and mask.shape == grey.shape and mask.dtype == np.uint8
        assert json.loads((out / line["files"]["findings"]).read_text()) == line
        if name in pixels:  # the same greys
            np.testing.assert_array_equal(mask, first)


def damaged(folder: Path) -> list[Path]:
    """Write pictures that cannot be films."""
    whole = save(folder / "whole.png", noise(90, 70)).read_bytes()
    header = whole.index(b"IHDR")
    giant = whole[: header + 4] + (200_000).to_bytes(4, "big") * 2 + whole[header + 12 :]
    jpeg = save(folder / "whole.jpg", noise(90, 70)).read_bytes()
    (folder / "whole.png").unlink()
    (folder / "whole.jpg").unlink()
    contents = {
        "empty.png": b"",
        "zeros.png": bytes(1000),
        "half.png": whole[: len(whole) // 2],
        "nearly.png": whole[:-2],
        "flipped.png": whole[:500] + bytes([whole[500] ^ 1]) + whole[501:],
        "giant.png": giant,
        "half.jpg": jpeg[: len(jpeg) // 2],
        "empty.jpeg": b"",
        "text.jpeg": b"no picture",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    save(folder / "clear.png", np.random.default_rng(0).integers(0, 256, (70, 70, 4), np.uint8))
    save(folder / "flat.png", np.full((70, 70), 9, np.uint8))
    return [folder / name for name in (*contents, "clear.png", "flat.png")]


def test_each_bad_picture_is_one_line_that_names_it(
    bundle: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, out = save(tmp_path / "good.png", noise(90, 70)), tmp_path / "out"
    (tmp_path / "bad").mkdir()
    bad = damaged(tmp_path / "bad")
    arguments = ["segment", "--cpu", good, tmp_path / "bad", "--keep-folders", "--bundle", bundle, "--out", out]
    capfd.readouterr()
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_USAGE
    assert "their outputs would both be called" in capfd.readouterr().err, "half.png and half.jpg"
    bad[bad.index(tmp_path / "bad/half.jpg")] = (tmp_path / "bad/half.jpg").rename(tmp_path / "bad/short.jpg")
    bad[bad.index(tmp_path / "bad/empty.jpeg")] = (tmp_path / "bad/empty.jpeg").rename(tmp_path / "bad/none.jpeg")
    assert run(app, "pneumo_dist", list(map(str, arguments))) == EXIT_USAGE
    printed = capfd.readouterr()
    named = [line.removeprefix("error: ").split(": refused, ")[0] for line in printed.err.splitlines()]
    assert sorted(named) == sorted(map(str, bad))
    assert json.loads(printed.out)["film"] == "good.png"


def test_pictures_of_one_name_keep_their_folders(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for number, place in enumerate(("one", "two/deep")):
        save(folder / place / "film.png", noise(70 + number, 80))
    segment = ["segment", "--cpu", folder, "--bundle", bundle, "--out", out]
    line = line_of(capsys, *segment)
    assert "one/film.png and " in line and "called film; pass --keep-folders" in line and not out.exists()
    assert run(app, "pneumo_dist", list(map(str, [*segment, "--keep-folders", "--format", "mask"]))) == EXIT_DONE
    found = {line["film"]: line["files"]["mask"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found == {"one/film.png": "one/film.mask.png", "two/deep/film.png": "two/deep/film.mask.png"}
    for number, name in enumerate(found.values()):
        mask = cv2.imread(str(out / name), cv2.IMREAD_UNCHANGED)
        assert mask is not None and mask.shape == (70 + number, 80)


def test_a_second_run_into_a_folder_of_the_films_takes_the_films_only(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save(tmp_path / "films/film.png", noise(90, 70))
    write_film(tmp_path / "films/other.dcm", noise(64, 64))
    for out in (tmp_path / "films", tmp_path / "films/out"):
        arguments = ["segment", "--cpu", str(tmp_path / "films"), "--bundle", str(bundle), "--out", str(out)]
        for _ in range(2):
            assert run(app, "pneumo_dist", arguments) == EXIT_DONE
            assert sorted(json.loads(line)["film"] for line in capsys.readouterr().out.splitlines()) == [
                "film.png",
                "other.dcm",
            ]


def test_formats_are_chosen_and_checked_before_any_work(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    film, picture, out = write_film(tmp_path / "film.dcm", noise(64, 64)), tmp_path / "p.png", tmp_path / "out"
    save(picture, noise(64, 64))
    segment = ("segment", "--cpu", film, "--bundle", bundle, "--out", out, "--format")
    assert "'masks' is not one of mask, rle, seg, overlay" in line_of(capsys, *segment, "masks")
    assert "'' is not one of" in line_of(capsys, *segment, "mask,")
    assert f"{picture}: a PNG or JPEG has no study" in line_of(capsys, *segment, "mask,seg", picture)
    assert not out.exists()
    assert run(app, "pneumo_dist", [*map(str, segment), "rle, seg"]) == EXIT_DONE
    assert sorted(path.name for path in out.iterdir()) == ["film.findings.json", "film.rle.txt", "film.seg.dcm"]


def test_a_cut_id_is_a_warning_line(bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    film = tmp_path / "film.dcm"
    segment = ["segment", "--cpu", str(film), "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="exceeds the maximum length"):
        write_film(film, noise(64, 64), AccessionNumber="SECRET-ACCESSION-1")
    assert run(app, "pneumo_dist", segment) == EXIT_DONE
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"warning: {film}: its AccessionNumber is longer than the 16 characters")
    assert "SECRET" not in line + printed.out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_progress_and_whole_lines(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for number in range(3):
        save(tmp_path / f"in/film{number}.png", noise(70, 70, seed=number))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    segment = ["segment", "--cpu", str(tmp_path / "in"), "--bundle", str(bundle), "--out", str(tmp_path / "out")]
    assert run(app, "pneumo_dist", segment) == EXIT_DONE
    shown = terminal.getvalue()
    for name in ("read", "predict", "write"):
        assert f"{name}: 100%" in shown and "3/3" in shown
    assert len([json.loads(line) for line in capsys.readouterr().out.splitlines()]) == 3


def test_the_commands_and_the_program_of_the_page_run(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs/segment.md").read_text()
    monkeypatch.chdir(tmp_path)
    shutil.copy(bundle, "blend.bundle")
    write_film(Path("film.dcm"), noise(64, 64), PixelSpacing=[5, 5])
    for place in ("a", "b"):
        save(Path("pictures") / place / "film.png", noise(70, 64))
    commands = re.findall(r"^    pneumo-dist (segment .*)$", page, re.MULTILINE)
    for command in commands:
        assert run(app, "pneumo_dist", [*shlex.split(command), "--cpu"]) == EXIT_DONE
    assert len(commands) == 3 and len(capsys.readouterr().out.splitlines()) == 4
    assert Path("masks/film.seg.dcm").exists() and Path("results/b/film.overlay.png").exists()
    assert Path("results/film.rle.txt").exists()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out.endswith("(64, 64) uint8\n")
