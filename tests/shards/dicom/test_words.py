"""Words for views, body parts and modalities, in films of many countries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from film_files import write_film

from shards.dicom.film import FilmRules, read_film
from shards.dicom.words import Meaning, known_words, modality_meaning, part_meaning, plain, view_meaning
from shards.errors import RejectedFilm

PIXELS = np.tile(np.arange(64, dtype=np.uint8), (64, 1))

LATERAL = """
LL RL LLD RLO LAO RPO L R LATERAL LAT LAT_L LLAT PA/LAT PERFIL PROFIL PROFILO PROFILE PROFIEL SEITLICH SEITE seitl.
SEITENAUFNAHME SCHRAEG Schräg LATERALE LATERO-LATERALE L-L L/L LATERAAL DWARS ZIJDELINGS ZIJOPNAME BOCZNE BOCZNY BOK
BOČNÍ BOCNI ŠIKMÁ skośne SIDA SIDE SIDEBILDE SIDEBILLEDE SIDLÄGE SKRÅ SNED SIVUKUVA OLDALIRÁNYÚ OBLICUA OBLIQUE OBLÍQUO
DECUBITUS Décubito STRANSKI
"""
FRONTAL = """
PA pa P.A. A.P. P-A P/A AP_ERECT FRONTAL FRENTE FACE FRONTALE FRONTALT POSTEROANTERIOR POSTERO-ANTERIOR Antero-Posterior
DORSOVENTRAL PÓSTERO-ANTERIOR TYLNO-PRZEDNIE ZADOPŘEDNÍ
"""
CHEST = """
CHEST chest Thorax LUNG PORT_CHEST CHESTABDOMEN CXR THX BRUSTKORB BRUST POITRINE POUMONS PECHO TORAX TÓRAX TORACE
POLMONI PEITO PULMÕES PETTO BORST BORSTKAS BRÖSTKORG LUNGOR BRYST BRYSTKASSE LUNGE TORAKS KLATKA_PIERSIOWA PŁUCA HRUDNÍK
PLÍCE MELLKAS RINTAKEHÄ KEUHKOT GÖĞÜS COR/PULM THORACIQUE
"""
OTHER = """
HIP SKULL CSPINE TSPINE THORACIC_SPINE hand Knee EXTREMITY ABDOMEN PELVIS SHOULDER CLAVICLE RIBS STERNUM UP_EXM BREAST
BWS BRUSTWIRBELSÄULE BRUSTBEIN WIRBELSÄULE BECKEN SCHULTER KNIE HÜFTE SCHÄDEL BAUCH RIPPEN ÉPAULE GENOU MAIN TÊTE CRÂNE
RACHIS CÔTES HOMBRO RODILLA MANO CRÁNEO COLUMNA COSTILLAS SPALLA GINOCCHIO COLONNA OMBRO JOELHO MÃO COLUNA SCHOUDER BUIK
KOLANO DŁOŃ KRĘGOSŁUP BRZUCH KOLENO PÁTEŘ BŘICHO KNÄ AXEL RYGGRAD SKULDER THORACOLUMBAR
"""


@pytest.mark.parametrize(
    ("meaning", "words", "expected"),
    [
        (view_meaning, LATERAL, Meaning.NO),
        (view_meaning, FRONTAL, Meaning.YES),
        (view_meaning, "XYZ UNKNOWN ROUTINE SUPINE STEHEND 1", Meaning.UNKNOWN),
        (part_meaning, CHEST, Meaning.YES),
        (part_meaning, OTHER, Meaning.NO),
        (part_meaning, "HEART UNKNOWN TRUNK XYZ", Meaning.UNKNOWN),
        (modality_meaning, "CR DX DR OT RG", Meaning.YES),
        (modality_meaning, "CT MR US MG XA RF XC RTDOSE RTIMAGE BDUS OPT PX IO SR SEG ct", Meaning.NO),
        (modality_meaning, "X-RAY PLAINFILM", Meaning.UNKNOWN),
    ],
)
def test_words_mean_what_they_mean_in_their_language(meaning: Any, words: str, expected: Meaning) -> None:
    found = {word: meaning(word.replace("_", " ")) for word in words.split()}
    assert {word for word, each in found.items() if each is not expected} == set()
    if meaning is not modality_meaning:
        assert {word for word in found if meaning(f" {word.lower()} ") is not expected} == set()


def test_a_lateral_word_counts_before_a_frontal_one_and_the_spine_before_the_chest() -> None:
    assert view_meaning("PA + PROFIL") is view_meaning("LATERAL AP") is Meaning.NO
    assert view_meaning("BILATERAL PA") is Meaning.YES
    assert part_meaning("CHEST RIBS") is Meaning.YES
    assert part_meaning("CHEST SPINE") is Meaning.NO


def test_accents_and_punctuation_do_not_count() -> None:
    assert plain("  Å-ö_ß.Łø  ") == "A O SS LO"
    assert plain("tórax/p.a.") == "TORAX/P A"


def film(path: Path, **attributes: Any) -> Path:
    return write_film(path / "a.dcm", PIXELS, **attributes)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
@pytest.mark.parametrize(
    ("attributes", "warning"),
    [
        ({"ViewPosition": "XYZ"}, "an unknown ViewPosition: taken as a frontal film"),
        ({"BodyPartExamined": "XYZ"}, "an unknown BodyPartExamined: taken as a chest film"),
        ({"Modality": "X-RAY"}, "an unknown Modality: taken as a radiograph"),
    ],
)
def test_an_unknown_word_is_a_warning_that_does_not_repeat_it(
    tmp_path: Path, attributes: dict[str, str], warning: str
) -> None:
    assert read_film(film(tmp_path, **attributes)).warnings == (warning,)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"ViewPosition": "SEITLICH"}, "its view is SEITLICH: lateral, oblique or decubitus, not a frontal film"),
        ({"BodyPartExamined": "RODILLA"}, "its body part is RODILLA, not the chest"),
        ({"Modality": "RTDOSE"}, "its modality is RTDOSE, not a radiograph"),
    ],
)
def test_a_word_for_something_else_is_named_in_the_reason(
    tmp_path: Path, attributes: dict[str, str], reason: str
) -> None:
    path = film(tmp_path, **attributes)
    with pytest.raises(RejectedFilm) as refused:
        read_film(path)
    assert str(refused.value) == f"{reason}; pass --any-film to accept it"
    np.testing.assert_array_equal(read_film(path, FilmRules(any_film=True)).image, PIXELS)


@pytest.mark.parametrize("modality", ["CR", "DX", "DR", "OT", ""])
def test_radiographs_pass_without_a_warning(tmp_path: Path, modality: str) -> None:
    assert read_film(film(tmp_path, Modality=modality)).warnings == ()


@pytest.mark.parametrize(("shape", "passes"), [((64, 64), True), ((63, 64), False), ((200, 63), False)])
def test_a_picture_of_less_than_64_pixels_a_side_is_no_chest_film(
    tmp_path: Path, shape: tuple[int, int], passes: bool
) -> None:
    path = write_film(tmp_path / "a.dcm", np.tile(np.arange(shape[1], dtype=np.uint8), (shape[0], 1)))
    assert read_film(path, FilmRules(any_film=True)).image.shape == shape
    if passes:
        assert read_film(path).warnings == ()
    else:
        with pytest.raises(RejectedFilm, match=f"it is {shape[1]}x{shape[0]} pixels, .*; pass --any-film to accept it"):
            read_film(path)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("pa", "PA"),
        ("AP", "AP"),
        ("CHEST PA", "CHEST PA"),
        ("P/A", "P/A"),
        ("PA MÜLLER", "PA"),
        ("MÜLLER^HANS", ""),
        ("LATERAL QUITTENBAUM", "LATERAL"),
        ("HAND;=1+1", "HAND"),
        ("=PA", "PA"),
        ("SEITLICH\x1b[31m", "SEITLICH"),
        ("", ""),
    ],
)
def test_only_known_words_of_a_view_or_body_part_are_kept(text: str, known: str) -> None:
    assert known_words(text) == known
