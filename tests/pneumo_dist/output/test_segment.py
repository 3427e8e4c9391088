"""The output of `segment`: mask, overlay, segmentation object and a line of findings."""

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import highdicom
import numpy as np
import pydicom
import pytest
from film_files import PATIENT_ID, PATIENT_NAME, noise, write_film

from pneumo_dist.output.dicom_seg import Algorithm
from pneumo_dist.output.found import FilmPrediction, find
from pneumo_dist.output.overlay import draw_film
from pneumo_dist.output.segment import Outputs, caption, check_formats, write_results
from pneumo_dist.output.segmenter import SegmentedFile
from pneumo_dist.predict.new_films import NewFilm, NewFilmOptions, film_shards
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule, apply_rule, image_score, label_map
from pneumo_dist.scoring.triplet import Triplet
from shards.build.names import name_id
from shards.build.sample import read_film_file
from shards.dataset import rle
from shards.dataset.table import LabelGrid
from shards.dicom.film import FilmRules, read_film
from shards.errors import InputError, RejectedFilm
from shards.phantom.dataset import synthesize

SIZE = 64
RULE = Rule(Triplet(0.8, 20, 0.4))
ALGORITHM = Algorithm("seunet ensemble", "1.2.3")
DAY = date(2024, 2, 29)


def grid_of(path: Path, scratch: Path, rules: FilmRules = FilmRules()) -> LabelGrid:  # noqa: B008
    shards, refused = film_shards([NewFilm(path, name_id(path))], scratch, NewFilmOptions(SIZE, rules))
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


def segment_film(
    path: Path,
    prediction: FilmPrediction,
    rule: Rule,
    algorithm: Algorithm,
    out: Path,
    film_rules: FilmRules = FilmRules(),  # noqa: B008
) -> dict[str, Any]:
    """Read one film, and write what its prediction says."""
    film = read_film_file(path, film_rules)
    segmented_file = SegmentedFile(NewFilm(path, name_id(path)), film, find(film, prediction, rule))
    return write_results(segmented_file, Outputs(out, algorithm, DAY))


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
    np.testing.assert_array_equal(picture(out / "1.2.3.overlay.png"), overlay(film, expected, line))
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
        "model": "seunet ensemble",
        "version": "1.2.3",
        "date": "2024-02-29",
        "files": {
            "mask": "1.2.3.mask.png",
            "overlay": "1.2.3.overlay.png",
            "segmentation": "1.2.3.seg.dcm",
            "findings": "1.2.3.findings.json",
        },
        "for_research_use_only": True,
    }
    assert sorted(path.name for path in out.iterdir()) == sorted(line["files"].values())
    assert json.loads((out / "1.2.3.findings.json").read_text()) == json.loads(json.dumps(line))


def overlay(path: Path, mask: Map, line: dict[str, Any]) -> Map:
    """Return the overlay of a film by its findings."""
    reason = line["area_mm2_missing_because"]
    size = f"not known in mm2, as {reason}" if line["area_mm2"] is None else f"{line['area_mm2']:,.0f} mm2"
    lines = [
        f"film: {line['files']['findings'].removesuffix('.findings.json')}",
        f"area: {line['area_px']:,} px, {size}",
        f"score: {line['image_score']:.3f}",
        "model: seunet ensemble, pneumo_dist 1.2.3, 2024-02-29",
    ]
    return draw_film(read_film(path).image, mask, line["warnings"], lines)


def test_a_film_without_a_finding_has_all_its_files(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(70, 90))
    p8 = np.full((SIZE, SIZE), 150, np.uint8)
    line, out = segmented(film, tmp_path, p8)
    assert (line["called"], line["area_px"], line["image_score"]) == (False, 0, 150 / 255)
    assert picture(out / "film.mask.png").max() == 0
    assert pydicom.dcmread(out / "film.seg.dcm").pixel_array.max() == 0
    np.testing.assert_array_equal(picture(out / "film.overlay.png"), overlay(film, np.zeros((70, 90), np.uint8), line))


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


def test_only_the_named_formats_are_written(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    read, prediction = read_film_file(film, FilmRules()), FilmPrediction(blob(), grid_of(film, tmp_path / "scratch"))
    found = find(read, prediction, RULE)
    kinds = {"mask": "film.mask.png", "rle": "film.rle.txt", "seg": "film.seg.dcm", "overlay": "film.overlay.png"}
    for kind, name in kinds.items():
        outputs = Outputs(tmp_path / kind, ALGORITHM, DAY, frozenset({kind}))
        line = write_results(SegmentedFile(NewFilm(film, "film"), read, found), outputs)
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == sorted(["film.findings.json", name])
        assert sorted(line["files"].values()) == sorted(["film.findings.json", name])
    text = (tmp_path / "rle/film.rle.txt").read_text()
    np.testing.assert_array_equal(rle.decode(text.removesuffix("\n"), 64, 64), found.mask)
    empty = find(read, FilmPrediction(np.zeros((SIZE, SIZE), np.uint8), prediction.grid), RULE)
    write_results(
        SegmentedFile(NewFilm(film, "film"), read, empty), Outputs(tmp_path / "rle", ALGORITHM, DAY, frozenset({"rle"}))
    )
    assert (tmp_path / "rle/film.rle.txt").read_text() == "-1\n"


def test_a_picture_has_its_results_on_its_own_grid_and_no_segmentation_object(tmp_path: Path) -> None:
    path = tmp_path / "in/sub/film.png"
    path.parent.mkdir(parents=True)
    assert cv2.imwrite(str(path), noise(70, 90))
    read = read_film_file(path, FilmRules())
    found = find(read, FilmPrediction(blob(), grid_of(path, tmp_path / "scratch")), RULE)
    line = write_results(
        SegmentedFile(NewFilm(path, "sub/film"), read, found), Outputs(tmp_path / "out", ALGORITHM, DAY)
    )
    assert line["film"] == "sub/film.png" and line["sop_instance_uid"] is None and line["called"]
    assert line["area_mm2"] is None and "pictures have none" in line["area_mm2_missing_because"]
    assert set(line["files"]) == {"mask", "overlay", "findings"}
    np.testing.assert_array_equal(picture(tmp_path / "out/sub/film.mask.png"), found.mask * 255)
    assert picture(tmp_path / "out/sub/film.overlay.png").shape[1:] == (90, 3)
    assert {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*")} == set(
        line["files"].values()
    )


def test_a_segmentation_object_of_a_picture_is_refused_by_name() -> None:
    paths = [Path("a.dcm"), Path("b.jpg"), Path("c.png")]
    check_formats(paths[:1], frozenset({"seg"}))
    check_formats(paths, frozenset({"mask", "overlay", "rle"}))
    with pytest.raises(InputError, match=r"^b\.jpg: a PNG or JPEG has no study .* leave seg out of --format$"):
        check_formats(paths, frozenset({"mask", "seg"}))


def test_the_caption_has_area_score_model_and_day(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64), PixelSpacing=[5, 5])
    prediction = FilmPrediction(blob(), grid_of(film, tmp_path / "scratch"))
    found = find(read_film(film), prediction, RULE)
    outputs = Outputs(tmp_path, Algorithm("Röntgen", "0.6.0"), DAY)
    area = int(found.mask.sum())
    assert caption(found, outputs) == [
        f"area: {area:,} px, {area * 25:,} mm2",
        f"score: {found.score:.3f}",
        "model: R?ntgen, pneumo_dist 0.6.0, 2024-02-29",
    ]


def test_a_spacing_that_the_area_is_measured_with_is_that_of_the_object(tmp_path: Path) -> None:
    measured: dict[float, Any] = {}
    for spacing in (5.0, 0.1):
        film = write_film(tmp_path / str(spacing) / "film.dcm", noise(64, 64), PixelSpacing=[spacing, spacing])
        line, out = segmented(film, tmp_path / str(spacing))
        measured[spacing] = line["area_mm2"]
        shared = pydicom.dcmread(out / "film.seg.dcm").SharedFunctionalGroupsSequence[0]
        assert ("PixelMeasuresSequence" in shared) == (measured[spacing] is not None)
    assert measured[5.0] and measured[0.1] is None


def test_a_cut_id_is_a_warning_in_the_findings_and_not_on_the_overlay(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64), AccessionNumber="A" * 20)
    line, out = segmented(film, tmp_path)
    assert line["warnings"] == [
        "its AccessionNumber is longer than the 16 characters of the standard: cut in the segmentation object"
    ]
    assert pydicom.dcmread(out / "film.seg.dcm").AccessionNumber == "A" * 16
    mask = picture(out / "film.mask.png") // 255
    np.testing.assert_array_equal(picture(out / "film.overlay.png"), overlay(film, mask, {**line, "warnings": []}))
