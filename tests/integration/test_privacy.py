"""No file of the whole chain names a patient: films full of names, and every file searched byte by byte."""

import gzip
import html
import io
import json
import re
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from tiny_runs import PLAIN

from pneumo_dist.cli.app import app
from shards import console
from shards.__main__ import app as shards_app
from shards.phantom.dataset import synthesize

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

# Each is at least six letters or digits long, so that no compressed stream holds one by chance.
NAME, ID = "Ölzweigmann^Zoë", "PID-7741-QX93"
PATIENT = {
    "PatientName": NAME,
    "PatientID": ID,
    "PatientBirthDate": "19310423",
    "PatientBirthName": "Quittenbaum",
    "PatientAddress": "Rübenacker 117b",
    "PatientTelephoneNumbers": "+49-7720-554-31",
    "PatientComments": "Nachbarin von Xaver Dünnbier",
    "OtherPatientIDs": "ALT-5508-KW",
    "AccessionNumber": "ACC8841207",
    "StudyDate": "20170929",
    "StudyTime": "173158.771",
    "StudyDescription": "Thoraxröhre Eilfall",
    "InstitutionName": "Klinikum Wümmekreis",
    "InstitutionAddress": "Hafenstieg 9",
    "ReferringPhysicianName": "Kornblum^Dörte",
    "OperatorsName": "Pfennigmaier",
    "StationName": "ROENTGEN-W4-KELLER",
    "DeviceSerialNumber": "SN-66021-B",
    "ImageComments": "Wiedervorlage Freitag",
}
# Written to the segmentation object, which is filed with the patient's study.
IN_SEGMENTATION = {
    *("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate", "StudyTime", "StudyDescription"),
    "ReferringPhysicianName",
}
PRIVATE, IN_JPEG, BEHIND, FOLDER = (
    "Privatnotiz Sauerkirsch",
    "Kommentar Haselnuss",
    "Nachtrag Wacholder",
    "Ablage Zinnober",
)


def needles(text: str) -> set[bytes]:
    """Return the spellings and encodings of a text, in lower case."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    spelt = {text, plain, text.replace("^", " "), *re.findall(r"[\w-]{6,}", text), *re.findall(r"[\w-]{6,}", plain)}
    spelt |= {json.dumps(each)[1:-1] for each in spelt} | {html.escape(each) for each in spelt}
    encoded = set()
    for each in spelt:
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
            encoded.add(each.encode(encoding, "ignore").lower())
    return {each for each in encoded if len(each) >= 6}


def contents(name: str, content: bytes) -> Iterator[bytes]:
    """Yield the bytes of a file, of the files in it, and of everything that is compressed in it."""
    yield content
    if name.endswith(".parquet"):
        table = pq.ParquetFile(io.BytesIO(content))
        yield repr(table.read().to_pylist()).encode()
        yield repr(table.metadata.metadata).encode()
    elif name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                yield from contents(member.name, stream.read() if stream else b"")
    elif zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            for each in inner.infolist():
                yield from contents(each.filename, inner.read(each))
    elif content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    elif content.startswith((b"\x89PNG", b"\xff\xd8")):
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        yield picture.tobytes() if picture is not None else b""
    for chunk in re.finditer(rb"IDAT|iCCP|zTXt|iTXt", content):
        start = content.find(b"\x78", chunk.end())
        try:
            yield zlib.decompressobj().decompress(content[start:]) if start >= 0 else b""
        except zlib.error:  # not the first chunk of a picture
            continue


def found(
    folder: Path, secrets: set[bytes], skip: Callable[[Path], bool] = lambda path: False
) -> list[tuple[str, bytes]]:
    """Return the files below a folder that hold a secret, and the secret; names of files count too."""
    hits: list[tuple[str, bytes]] = []
    pattern = re.compile(b"|".join(map(re.escape, sorted(secrets))))
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        parts = contents(path.name, path.read_bytes()) if path.is_file() and not skip(path) else iter(())
        matches = (pattern.search(each.lower()) for each in (name.encode("utf-8", "surrogateescape"), *parts))
        hits += [(name, match[0]) for match in matches if match]
    return hits


def fill_with_names(path: Path, to: Path, **changes: str) -> None:
    """Write a film again with a patient's data in its elements, in its JPEG stream and behind its pixels."""
    film = pydicom.dcmread(path)
    film.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in {**PATIENT, **changes}.items():
        setattr(film, keyword, value)
    block = film.private_block(0x0011, "STRANGERS", create=True)
    block.add_new(0x01, "LO", PRIVATE)
    item = Dataset()
    item.PatientID, item.PatientName = ID, NAME
    film.OtherPatientIDsSequence = [item]
    frame = get_frame(film.PixelData, 0, number_of_frames=1)
    comment = IN_JPEG.encode()
    frame = frame[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + frame[2:] + BEHIND.encode()
    film.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    film["PixelData"].is_undefined_length = True
    to.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(to)
    assert comment in to.read_bytes()


def call(*arguments: object) -> int:
    shards = arguments[0] == "shards"
    return console.run(shards_app if shards else app, "test", list(map(str, arguments[1:] if shards else arguments)))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder `out` with all that the commands wrote, made from the films beside it."""
    root = tmp_path_factory.mktemp("private")
    films, out, temporary = root / FOLDER, root / "out", root / "temporary"
    temporary.mkdir()
    (root / "plain.yaml").write_text(PLAIN.model_dump_json())
    made = synthesize(root / "synth", images=12, size=96, positive_rate=0.5, seed=3)
    test = synthesize(root / "test", images=3, size=96, positive_rate=0.5, seed=4)
    odd = {"ViewPosition": "PA QUITTENBAUM", "BodyPartExamined": "CHEST KORNBLUM", "PatientSex": "PFENNIGMAIER"}
    for number, path in enumerate(sorted(made.dicom_dir.rglob("*.dcm"))):
        own = {"PatientID": f"{ID}-{number // 2}", **(odd if number % 2 else {})}
        fill_with_names(path, films / "train" / path.name, **own)
    for path in sorted(test.dicom_dir.rglob("*.dcm")):
        fill_with_names(path, films / "test" / path.name)
    first = sorted(test.dicom_dir.rglob("*.dcm"))[0]
    lateral = {"ViewPosition": "LL QUITTENBAUM", "SOPInstanceUID": "1.2.3"}
    fill_with_names(first, films / "test/1.2.3.dcm", **lateral)
    for number, keyword in enumerate(("WindowCenter", "RescaleSlope", "NumberOfFrames", "PixelSpacing", "Rows")):
        path = films / f"test/1.2.4.{number}.dcm"
        fill_with_names(first, path)
        spoil(path, keyword)
    runs, shards = out / "runs", out / "shards"
    labels = root / "labels.csv"
    labels.write_text(made.labels_csv.read_text())
    common = ("--config", root / "plain.yaml", "--runs", runs)
    build = ("shards", "build", "--dicom", films / "train", "--rle", labels, "--test-dicom", films / "test")
    small = ("--image-size", 64, "--folds", 2, "--workers", 1, "--max-rejects", 6)
    commands: list[tuple[object, ...]] = [
        (*build, "--out", shards, *small),
        (*build, "--out", out / "jpeg", *small, "--codec", "jpeg", "--pseudonymise"),
        ("shards", "show", shards, "--out", out / "sheet.png"),
        ("shards", "export", shards, "--png", out / "export"),
        ("shards", "export", shards, "--nnunet", out / "nnunet"),
        *(("train", "--cpu", *common, "--shards", shards, "--fold", fold) for fold in (0, 1)),
        *(("predict", "--cpu", *common, "--shards", shards, "--split", split) for split in ("oof", "test")),
        ("tune", *common),
        ("submit", *common),
        ("report", *common, "--shards", shards),
        ("average", "--cpu", *common, "--shards", shards, "--bundle", out / "plain.bundle"),
        ("predict", "--cpu", "--bundle", out / "plain.bundle", "--dicom", films / "train", "--out", out / "new/maps"),
        ("segment", "--cpu", films / "train", "--bundle", out / "plain.bundle", "--out", out / "masks"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        for command in commands:
            assert call(*command) == 0, command
    yield root


def spoil(path: Path, keyword: str) -> None:
    """Write the patient's name where a number is expected."""
    film = pydicom.dcmread(path)
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    film[tag] = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(tag), "LO", len(NAME.encode()), NAME.encode(), 0, False, True
    )
    film.save_as(path)


def secrets_of(*keywords: str) -> set[bytes]:
    others = (PRIVATE, IN_JPEG, BEHIND, FOLDER)
    return set().union(*(needles(text) for text in (*(PATIENT[each] for each in keywords), *others)))


def test_films_are_full_of_names(chain: Path) -> None:
    """The search finds every secret where it is: in the films."""
    for keyword, text in PATIENT.items():
        assert found(chain / FOLDER / "train", needles(text)), keyword
    for text in (PRIVATE, IN_JPEG, BEHIND):
        assert found(chain / FOLDER / "train", needles(text)), text


def test_no_file_of_the_chain_names_a_patient(chain: Path) -> None:
    out = chain / "out"
    kinds = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert {".tar", ".parquet", ".pt", ".csv", ".html", ".png", ".json", ".jsonl", ".bundle", ".dcm", ".idx"} <= kinds
    assert list(out.rglob("events.out.tfevents.*")), "TensorBoard's data is searched too"
    assert found(out, secrets_of(*PATIENT), skip=lambda path: path.name.endswith(".seg.dcm")) == []
    assert found(chain / "temporary", secrets_of(*PATIENT)) == []


def test_a_segmentation_object_has_the_patient_and_nothing_else(chain: Path) -> None:
    objects = list((chain / "out/masks").glob("*.seg.dcm"))
    assert objects
    for keyword in IN_SEGMENTATION - {"StudyTime"}:
        assert len(found(chain / "out/masks", needles(PATIENT[keyword]))) >= len(objects), keyword
    assert found(chain / "out/masks", secrets_of(*(set(PATIENT) - IN_SEGMENTATION))) == []


def test_salts_are_beside_what_they_protect_and_in_no_file(chain: Path) -> None:
    salts = sorted((chain / "out").rglob("*.salt"))
    assert [path.name for path in salts] == ["jpeg.salt", "films.salt", "shards.salt"]
    for salt in salts:
        assert salt.stat().st_mode & 0o777 == 0o600
        text = salt.read_bytes().strip()
        secrets = {text, bytes.fromhex(text.decode())}
        assert found(chain / "out", secrets, skip=lambda path: path.suffix == ".salt") == []


def test_pseudonyms_hide_the_films_ids_too(chain: Path) -> None:
    table = (chain / "out/jpeg.ids.csv").read_text().splitlines()
    assert (chain / "out/jpeg.ids.csv").stat().st_mode & 0o777 == 0o600
    ids = {line.split(",")[0].encode() for line in table if len(line.split(",")[0]) > 20}
    assert len(ids) == 15
    assert found(chain / "out/jpeg", ids) == []


@pytest.mark.parametrize("kind", ["gz", "zip", "tar", "png", "parquet"])
def test_the_search_sees_through_compression(tmp_path: Path, kind: str) -> None:
    secret = NAME.encode()
    stream = io.BytesIO()
    if kind == "gz":
        stream.write(gzip.compress(secret))
    elif kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a", secret * 9)
    elif kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as files:
            member = tarfile.TarInfo("a.gz")
            member.size = len(gzip.compress(secret))
            files.addfile(member, io.BytesIO(gzip.compress(secret)))
    elif kind == "png":
        pixels = np.frombuffer((secret * 200)[:4096], np.uint8).reshape(1, -1)
        filtered = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_COMPRESSION, 9)
        stream.write(cv2.imencode(".png", pixels, filtered)[1].tobytes())
    else:
        pq.write_table(pa.table({"a": [NAME] * 999}), stream, compression="zstd")
    (tmp_path / f"a.{kind}").write_bytes(stream.getvalue())
    if kind in ("gz", "zip", "png"):
        assert secret not in stream.getvalue()
    assert found(tmp_path, needles(NAME))
