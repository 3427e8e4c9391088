"""Reading members of tars: processes, threads, local copies, and damage that is named."""

import hashlib
import os
import pickle
import shutil
import struct
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from damage import flip_bit
from edited_dataset import change_manifest

from shards.dataset.manifest import local_copy_name
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample, index_tar
from shards.dataset.verify import verify
from shards.errors import InputError


def digest_of(shards: Shards) -> str:
    content = b"".join(shards.read(index, member) for index in range(len(shards)) for member in ("image", "json"))
    return hashlib.sha256(content).hexdigest()


def test_a_pickled_reader_reads_the_same_bytes(dataset: Path) -> None:
    shards = Shards(dataset)
    expected = digest_of(shards)
    assert digest_of(pickle.loads(pickle.dumps(shards))) == expected


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_reader_leaves_its_parents_position_alone(dataset: Path) -> None:
    shards = Shards(dataset)
    expected = digest_of(shards)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(send, digest_of(shards).encode())
        finally:
            os._exit(0)
    mine = digest_of(shards)
    os.close(send)
    with os.fdopen(receive) as stream:
        theirs = stream.read()
    os.waitpid(child, 0)
    assert theirs == mine == expected


def test_threads_that_share_a_reader_read_the_same_bytes(dataset: Path) -> None:
    alone, shared = Shards(dataset), Shards(dataset)
    jobs = [(index, member) for index in range(len(alone)) for member in ("image", "json")] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda job: shared.read(*job), jobs))
    assert together == [alone.read(*job) for job in jobs]


def test_a_closed_reader_opens_again(dataset: Path) -> None:
    shards = Shards(dataset)
    before = digest_of(shards)
    shards.close()
    assert digest_of(shards) == before


@pytest.mark.parametrize("member", ["image", "mask", "json"])
def test_a_flipped_byte_is_named_by_shard_and_key(own_dataset: Path, member: str) -> None:
    shards = Shards(own_dataset)
    index = int(shards.indices("train")[3])
    tar, key = str(shards.column("shard")[index]), str(shards.column("key")[index])
    flip_bit(own_dataset / tar, int(shards.column(f"{member}_offset")[index]) + 7)
    with pytest.raises(CorruptSample) as error:
        shards.read(index, member)
    assert tar in str(error.value)
    assert key in str(error.value)
    others = [i for i in range(len(shards)) if i != index]
    assert all(shards.read(i, "image") for i in others)


def test_a_truncated_tar_is_named_by_shard_and_key(own_dataset: Path) -> None:
    shards = Shards(own_dataset)
    index = int(shards.indices("train")[-1])
    tar, key = str(shards.column("shard")[index]), str(shards.column("key")[index])
    os.truncate(own_dataset / tar, int(shards.column("image_offset")[index]) + 5)
    with pytest.raises(CorruptSample, match=rf"{tar}.*{key}"):
        shards.read(index, "image")


def test_a_missing_tar_is_named(own_dataset: Path) -> None:
    shards = Shards(own_dataset)
    tar = str(shards.column("shard")[0])
    (own_dataset / tar).unlink()
    with pytest.raises(InputError, match=tar):
        shards.read(0, "image")


def staged(dataset: Path, tars: Path, count: int) -> Shards:
    """The dataset with copies of its first tars in another folder."""
    tars.mkdir()
    for shard in Shards(dataset).manifest["shards"][:count]:
        shutil.copy(dataset / shard["name"], tars / local_copy_name(shard))
    return Shards(dataset, tars)


def test_local_copies_are_read_instead_of_the_datasets_tars(own_dataset: Path, tmp_path: Path) -> None:
    expected = digest_of(Shards(own_dataset))
    shards = staged(own_dataset, tmp_path / "tars", 2)
    for shard in shards.manifest["shards"][:2]:
        (own_dataset / shard["name"]).unlink()
    assert digest_of(shards) == expected
    assert digest_of(pickle.loads(pickle.dumps(shards))) == expected, "worker processes read the copies too"
    shards.close()
    (tmp_path / "tars" / local_copy_name(shards.manifest["shards"][0])).unlink()
    with pytest.raises(InputError, match=rf"{own_dataset}/train-00000.tar: missing"):
        shards.read(0, "image")


def test_a_flipped_byte_is_named_by_the_file_that_was_read(own_dataset: Path, tmp_path: Path) -> None:
    shards = staged(own_dataset, tmp_path / "tars", 1)
    copy = tmp_path / "tars" / local_copy_name(shards.manifest["shards"][0])
    flip_bit(copy, int(shards.column("image_offset")[0]) + 7)
    with pytest.raises(CorruptSample, match=rf"^{copy}: .*remove this file"):
        shards.read(0, "image")
    last = len(shards) - 1
    original = own_dataset / shards.column("shard")[last]
    flip_bit(original, int(shards.column("image_offset")[last]) + 7)
    with pytest.raises(CorruptSample, match=rf"^{original}: .*restore"):
        shards.read(last, "image")


def test_a_copy_of_other_content_is_not_read(own_dataset: Path, tmp_path: Path) -> None:
    shards = staged(own_dataset, tmp_path / "tars", 5)
    other = [{**shard, "sha256": "0" * 64} for shard in shards.manifest["shards"]]
    change_manifest(own_dataset, shards=other)
    for path in (tmp_path / "tars").iterdir():
        path.write_bytes(b"of the dataset that stood here before")
    assert digest_of(Shards(own_dataset, tmp_path / "tars")) == digest_of(Shards(own_dataset))


def header(name: str, size: bytes | int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Return the header of a member, whose size may be anything that fits the field."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[157 : 157 + len(link)] = link.encode()
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)
FILM = header("a.image.png", 4) + b"film".ljust(512, b"\0")
BELOW_ZERO = b"\xff" * 8 + struct.pack(">i", -512)
TARS = {
    "a size below zero, whose next member is itself": FILM + header("b.image.png", BELOW_ZERO) + END,
    "a size beyond the end": header("a.image.png", b"\x80" + b"\x7f" * 11) + END,
    "a size of the whole disk": header("a.image.png", 0o77777777777) + END,
    "a link": header("a.image.png", 0, tarfile.SYMTYPE, "/etc/passwd") + END,
    "a hard link": header("a.image.png", 0, tarfile.LNKTYPE, "../../secret") + END,
    "a device": header("a.image.png", 0, tarfile.CHRTYPE) + END,
    "a folder": header("a.image.png", 0, tarfile.DIRTYPE) + END,
    "a sparse file": header("a.image.png", 0, tarfile.GNUTYPE_SPARSE) + END,
    "endless extended headers": header("a.x", 0, tarfile.XHDTYPE) * 5000 + FILM + END,
    "endless long names": header("a.x", 0, tarfile.GNUTYPE_LONGNAME) * 5000 + FILM + END,
    "a member twice": FILM + FILM + END,
    "no member at all": b"not a tar" * 100,
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_of_anything_but_plain_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.tar").write_bytes(TARS[name])
    with pytest.raises((tarfile.TarError, ValueError)):
        index_tar(tmp_path / "a.tar")


def test_a_plain_tar_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(FILM + END)
    assert index_tar(tmp_path / "a.tar") == ({("a", "image"): 512}, "v1.2 1\nimage.png 512 4 a.image.png\n")


@pytest.mark.parametrize("name", ["../../out.image.png", "/tmp/out.image.png", "a.image.png"])
def test_members_are_found_by_offset_and_never_extracted(
    own_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tar = own_dataset / "train-00000.tar"
    content = tar.read_bytes()
    tar.write_bytes(header(name, len(Shards(own_dataset).read(0, "image"))) + content[512:])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.parent.rglob("*"))
    assert any("train-00000.tar" in fault for fault in verify(own_dataset))
    assert Shards(own_dataset).read(0, "image")
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", ["tar", "index"])
def test_a_pipe_and_an_endless_device_are_no_dataset(own_dataset: Path, kind: str) -> None:
    path = own_dataset / ("train-00000.tar" if kind == "tar" else "train-00000.idx")
    path.unlink()
    if kind == "tar":
        os.mkfifo(path)
        with pytest.raises(InputError, match="is a pipe, a socket or a device"):
            Shards(own_dataset).read(0, "image")
    else:
        path.symlink_to("/dev/zero")
        assert any("does not describe its tar" in fault for fault in verify(own_dataset))
