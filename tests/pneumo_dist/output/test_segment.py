"""The output of `segment`: mask, overlay, segmentation object and a line of findings."""

import io
import json
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from film_files import PATIENT_ID, PATIENT_NAME, noise, write_film

from pneumo_dist.output.dicom_seg import Algorithm
from pneumo_dist.output.segment import EMPTY, FOUND, FilmPrediction, draw_film, measured_area, segment_film
from pneumo_dist.predict.new_films import NewFilmOptions, film_shards
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule, apply_rule, image_score, label_map
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset.table import LabelGrid
from shards.dicom.film import FilmInfo, FilmRules, read_film
from shards.errors import InputError, RejectedFilm
from shards.phantom.dataset import synthesize

SIZE = 64
RULE = Rule(Triplet(0.8, 20, 0.4))
ALGORITHM = Algorithm("seunet ensemble", "1.2.3")


def grid_of(path: Path, scratch: Path, rules: FilmRules = FilmRules()) -> LabelGrid:  # noqa: B008
    shards, refused = film_shards([path], scratch, NewFilmOptions(SIZE, rules))
    assert shards is not None, refused
    return shards.grid(0)


def blob() -> Map:
    """Return a smooth prediction of a lopsided shape."""
    shape = np.zeros((SIZE, SIZE), np.uint8)
    cv2.ellipse(shape, (24, 30), (9, 14), 20, 0, 360, 255, -1)
    return np.asarray(cv2.GaussianBlur(shape, (0, 0), 2), np.uint8)


def picture(path: Path) -> Map:
    """Read a PNG file as grey or RGB."""
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored is not None
    return np.asarray(stored if stored.ndim == 2 else stored[:, :, ::-1])


def segmented(
    path: Path, tmp_path: Path, p8: Map | None = None, rule: Rule = RULE, class_probability: float | None = None
) -> tuple[dict[str, Any], Path]:
    grid, out = grid_of(path, tmp_path / f"scratch {path.name}"), tmp_path / "out"
    prediction = FilmPrediction(blob() if p8 is None else p8, grid, class_probability)
    return segment_film(path, prediction, rule, ALGORITHM, out), out


@pytest.mark.parametrize("shape", [(64, 64), (131, 97), (70, 77)])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_mask_segmentation_and_findings_are_those_of_the_rule(
    shape: tuple[int, int], photometric: str, tmp_path: Path
) -> None:
    spacing = [0.995 * 300 / shape[1], 300 / shape[1]]
    film = write_film(
        tmp_path / "1.2.3.dcm", noise(*shape), PhotometricInterpretation=photometric, PixelSpacing=spacing
    )
    line, out = segmented(film, tmp_path, class_probability=0.75)
    grid = grid_of(film, tmp_path / "again")
    expected = apply_rule(label_map(blob(), grid), RULE)
    assert expected.shape == shape and 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(picture(out / "1.2.3.mask.png"), expected * 255)
    np.testing.assert_array_equal(pydicom.dcmread(out / "1.2.3.seg.dcm").pixel_array, expected)
    np.testing.assert_array_equal(picture(out / "1.2.3.overlay.png"), draw_film(read_film(film).image, expected))
    seg, source = highdicom.seg.segread(out / "1.2.3.seg.dcm"), pydicom.dcmread(film)
    found = seg.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)
    np.testing.assert_array_equal(found[0, :, :, 0], expected)
    stored_spacing = [float(value) for value in source.PixelSpacing]
    assert json.loads(json.dumps(line)) == {
        "film": "1.2.3.dcm",
        "sop_instance_uid": source.SOPInstanceUID,
        "called": True,
        "image_score": image_score(label_map(blob(), grid), 20),
        "class_probability": 0.75,
        "warnings": [],
        "area_px": int(expected.sum()),
        "area_mm2": round(int(expected.sum()) * stored_spacing[0] * stored_spacing[1], 2),
        "area_mm2_missing_because": None,
        "spacing_mm": stored_spacing,
        "spacing_tag": "PixelSpacing",
        "files": {"mask": "1.2.3.mask.png", "overlay": "1.2.3.overlay.png", "segmentation": "1.2.3.seg.dcm"},
        "for_research_use_only": True,
    }
    assert sorted(path.name for path in out.iterdir()) == sorted(line["files"].values())


def test_a_film_without_a_finding_has_all_its_files(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(70, 90))
    p8 = np.full((SIZE, SIZE), 150, np.uint8)
    line, out = segmented(film, tmp_path, p8)
    assert (line["called"], line["area_px"], line["image_score"]) == (False, 0, 150 / 255)
    assert picture(out / "film.mask.png").max() == 0
    assert pydicom.dcmread(out / "film.seg.dcm").pixel_array.max() == 0
    np.testing.assert_array_equal(
        picture(out / "film.overlay.png"), draw_film(read_film(film).image, np.zeros((70, 90), np.uint8))
    )


def test_the_whole_rule_decides(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    p8 = blob()
    p8[60:62, 60:62] = 255
    gated = Rule(RULE.triplet, gate=0.5)
    assert not segmented(film, tmp_path / "shut", p8, rule=gated, class_probability=0.5)[0]["called"]
    assert segmented(film, tmp_path / "open", p8, rule=gated, class_probability=0.51)[0]["called"]
    whole = segmented(film, tmp_path / "whole", p8)[0]["area_px"]
    assert segmented(film, tmp_path / "parts", p8, rule=Rule(RULE.triplet, smallest_part=5))[0]["area_px"] == whole - 4


def test_the_patient_is_named_in_the_segmentation_object_only(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    line, out = segmented(film, tmp_path)
    made = pydicom.dcmread(out / "film.seg.dcm")
    assert (made.PatientID, made.PatientName) == (PATIENT_ID, PATIENT_NAME)
    private = [text.encode() for text in (PATIENT_ID, PATIENT_NAME, "Doe", "19500102", "A1", "Who^Doctor")]
    for content in (
        json.dumps(line).encode(),
        *((out / line["files"][kind]).read_bytes() for kind in ("mask", "overlay")),
    ):
        assert not any(text in content for text in private if len(text) > 2)


def test_the_overlay_shows_film_outline_fill_and_margin() -> None:
    image, mask = noise(200, 160), np.zeros((200, 160), np.uint8)
    mask[50:100, 30:80] = 1
    drawn = draw_film(image, mask)
    assert drawn.dtype == np.uint8 and drawn.shape[0] > 200 and drawn.shape[1:] == (160, 3)
    outside = drawn[:200][mask == 0]
    np.testing.assert_array_equal(outside, np.repeat(image[mask == 0][:, None], 3, axis=1))
    np.testing.assert_array_equal(drawn[50, 30:80], np.tile([255, 0, 0], (50, 1)))
    inner = drawn[55:95, 35:75].astype(int)
    np.testing.assert_array_equal(inner[..., 0], np.rint(image[55:95, 35:75] * 0.8 + 51))
    np.testing.assert_array_equal(inner[..., 1], np.rint(image[55:95, 35:75] * 0.8))


def list_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets every text that OpenCV draws from now on."""
    texts: list[str] = []
    draw = cv2.putText

    def noted(strip: Any, text: str, *more: Any) -> Any:
        texts.append(text)
        return draw(strip, text, *more)

    monkeypatch.setattr(cv2, "putText", noted)
    return texts


def test_the_margin_says_whether_there_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_texts = list_texts(monkeypatch)
    image, mask = noise(400, 300), np.zeros((400, 300), np.uint8)
    empty = draw_film(image, mask)
    np.testing.assert_array_equal(empty[:400], np.repeat(image[:, :, None], 3, axis=2))
    assert empty[400:].max() > 100, "the margin has no text"
    assert not empty[400:, 290:].any(), "the text runs out of the margin"
    mask[9:50, 9:50] = 1
    draw_film(image, mask)
    assert drawn_texts[::2] == [EMPTY, FOUND] and EMPTY == "no pneumothorax found"
    assert all("research use only" in text for text in drawn_texts[1::2])


@pytest.mark.parametrize("width", [64, 300, 2000])
def test_the_margin_shows_every_warning_in_full(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    drawn_texts = list_texts(monkeypatch)
    image, mask = noise(90, width), np.zeros((90, width), np.uint8)
    texts = ["no BodyPartExamined: taken as a chest film", "its pixels are not square: " + "resampled " * 9]
    drawn = draw_film(image, mask, texts)
    assert " ".join(" ".join(drawn_texts[2:]).split()) == " ".join(f"warning: {text}".strip() for text in texts)
    assert drawn.shape[0] > draw_film(image, mask).shape[0]
    assert drawn[-12 * len(drawn_texts[2:]) :].any() and not drawn[90:, -1].any(), "a line runs out of the margin"


@pytest.mark.parametrize(
    ("spacing", "area", "reason"),
    [
        ((0.25, 0.25), 100 * 0.25 * 0.25, None),
        ((0.4, 0.5), 100 * 0.4 * 0.5, None),
        ((0.25, 0.249), None, "24.9 cm wide"),
        ((0.25, 0.501), None, "50.1 cm wide"),
        ((0.143, 0.143), None, "1000 columns of 0.143 mm (ImagerPixelSpacing) make a film 14.3 cm wide"),
    ],
)
def test_the_area_is_measured_if_the_width_can_be_that_of_a_chest(
    spacing: tuple[float, float], area: float | None, reason: str | None
) -> None:
    mask = np.zeros((2000, 1000), np.uint8)
    mask[10:20, 10:20] = 1
    found = measured_area(
        mask, FilmInfo(spacing_row=spacing[0], spacing_column=spacing[1], spacing_tag="ImagerPixelSpacing")
    )
    assert found["area_px"] == 100 and found["area_mm2"] == area
    assert found["spacing_mm"] == list(spacing) and found["spacing_tag"] == "ImagerPixelSpacing"
    assert (found["area_mm2_missing_because"] is None) == (reason is None)
    assert (reason or "") in (found["area_mm2_missing_because"] or "")


def test_no_spacing_is_no_area() -> None:
    found = measured_area(np.ones((4, 5), np.uint8), FilmInfo())
    assert (found["area_px"], found["area_mm2"], found["spacing_mm"], found["spacing_tag"]) == (20, None, None, None)
    assert "neither a PixelSpacing nor an ImagerPixelSpacing" in found["area_mm2_missing_because"]


def test_an_imager_spacing_is_named(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64), ImagerPixelSpacing=[5, 5])
    line, _ = segmented(film, tmp_path)
    assert line["spacing_tag"] == "ImagerPixelSpacing" and line["area_mm2"] == line["area_px"] * 25


@pytest.mark.parametrize(
    ("more", "error"),
    [({"ViewPosition": "LL"}, RejectedFilm), ({"StudyInstanceUID": None}, InputError)],
)
def test_a_refused_film_leaves_no_file(more: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64), **more)
    grid, out = grid_of(film, tmp_path / "scratch", FilmRules(any_film=True)), tmp_path / "out"
    with pytest.raises(error):
        segment_film(film, FilmPrediction(blob(), grid), RULE, ALGORITHM, out)
    assert not out.exists() or not list(out.iterdir())


def test_films_that_the_rules_admit_are_segmented(tmp_path: Path) -> None:
    rules = FilmRules(any_film=True)
    film = write_film(tmp_path / "film.dcm", noise(64, 64), ViewPosition="LL")
    grid = grid_of(film, tmp_path / "scratch", rules)
    assert segment_film(film, FilmPrediction(blob(), grid), RULE, ALGORITHM, tmp_path / "out", rules)["called"]


def test_another_grid_than_that_of_the_film_is_an_assertion_error(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    other = grid_of(write_film(tmp_path / "other.dcm", noise(64, 66)), tmp_path / "scratch")
    with pytest.raises(AssertionError):
        segment_film(film, FilmPrediction(blob(), other), RULE, ALGORITHM, tmp_path / "out")


def test_a_second_run_replaces_all_files(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    segmented(film, tmp_path)
    line, out = segment_again(film, tmp_path)
    assert not line["called"] and sorted(path.name for path in out.iterdir()) == sorted(line["files"].values())
    assert pydicom.dcmread(out / "film.seg.dcm").pixel_array.max() == 0 == picture(out / "film.mask.png").max()


def segment_again(film: Path, tmp_path: Path) -> tuple[dict[str, Any], Path]:
    grid, out = grid_of(film, tmp_path / "another scratch"), tmp_path / "out"
    return segment_film(film, FilmPrediction(np.zeros((SIZE, SIZE), np.uint8), grid), RULE, ALGORITHM, out), out


def test_a_film_without_file_meta_information_is_segmented(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    whole, bare = pydicom.dcmread(film), io.BytesIO()
    with pydicom.filebase.DicomFileLike(bare) as stream:
        stream.is_little_endian, stream.is_implicit_VR = True, False
        pydicom.filewriter.write_dataset(stream, whole)
        film.write_bytes(bare.getvalue())
    assert film.read_bytes()[128:132] != b"DICM"
    line, out = segmented(film, tmp_path)
    assert line["called"] and pydicom.dcmread(out / "film.seg.dcm").PatientID == PATIENT_ID


def test_phantom_films_are_segmented(tmp_path: Path) -> None:
    made = synthesize(tmp_path / "synth", images=2, size=96, positive_rate=0.5, seed=4)
    for path in sorted(made.dicom_dir.rglob("*.dcm")):
        line, out = segmented(path, tmp_path)
        assert line["sop_instance_uid"] == path.stem and line["called"]
        assert line["area_mm2"] is None and "14.6 cm wide" in line["area_mm2_missing_because"]
        assert picture(out / line["files"]["overlay"]).shape[1] == 96
        np.testing.assert_array_equal(
            pydicom.dcmread(out / line["files"]["segmentation"]).pixel_array * 255, picture(out / line["files"]["mask"])
        )
