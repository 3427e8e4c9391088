"""Names that may leave the hospital: sample keys, pseudonyms, and keyed hashes of patients."""

import contextlib
import csv
import hashlib
import io
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from shards.errors import InputError
from shards.files import atomic_write
from shards.temporaries import scratch_folder

# A USTAR name has at most 100 bytes, ten of them for `.image.jpg`.
LONGEST_KEY = 80
SALT_BYTES = 32


def sample_key(image_id: str) -> str:
    """Return a WebDataset key for an image id: short, without dots (which would split the sample) or odd characters.

    A DICOM UID gets `-` for `.`. Ids with other odd characters, and ids that look like the key of a UID, get a digest,
    so that distinct ids have distinct keys.
    """
    if re.fullmatch(r"[0-9.]+", image_id) and len(image_id) <= LONGEST_KEY:
        return image_id.replace(".", "-")
    is_plain = re.fullmatch(r"[A-Za-z0-9_-]+", image_id) and not re.fullmatch(r"[0-9-]*-[0-9-]*", image_id)
    if is_plain and len(image_id) <= LONGEST_KEY - 13:
        return image_id
    digest = hashlib.blake2b(image_id.encode(), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', image_id)[: LONGEST_KEY - 13]}-{digest}"


def load_salt(path: Path, create: bool) -> bytes:
    """Return the secret that keys patient hashes. `create` makes a missing file, with mode 0600.

    Raises InputError for a file that is missing, too short, or readable by others.
    """
    if create and not path.exists():
        # Tasks that start at once share the salt of the first: unlike a rename, a link replaces nothing.
        with scratch_folder(path.parent, f"{path.name}.new") as folder, contextlib.suppress(FileExistsError):
            atomic_write(folder / "salt", secrets.token_hex(SALT_BYTES) + "\n", mode=0o600)
            os.link(folder / "salt", path)
    if not path.is_file():
        raise InputError(f"{path}: no such patient salt; give the file of the first build with --patient-salt-file")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise InputError(f"{path}: others may read the patient salt; run: chmod 600 {path}")
    salt = path.read_bytes().strip()
    if len(salt) < 16:
        raise InputError(f"{path}: a patient salt needs at least 16 bytes; remove the file, and the build makes one")
    return salt


def patient_group(patient_id: str, salt: bytes) -> str:
    """Return the group id of a patient: a keyed BLAKE2b hash of 32 hexadecimal digits."""
    return _keyed(b"patient", patient_id.encode(), salt)


def image_pseudonym(image_id: str, salt: bytes) -> str:
    """Return the pseudonym of an image id: `P` and 24 hexadecimal digits."""
    return "P" + _keyed(b"image", image_id.encode(), salt)[:24]


def save_pseudonyms(path: Path, names: Mapping[str, str]) -> None:
    """Add pairs of image id and pseudonym to the map file, which only its owner can read."""
    known = {}
    if path.exists():
        try:
            with path.open(newline="", encoding="utf-8") as stream:
                known = dict(row for row in csv.reader(stream) if len(row) == 2)
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: not a map that a build wrote ({error}); restore it from a copy") from None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(sorted({**known, **names}.items()))
    atomic_write(path, text.getvalue(), mode=0o600)


def salt_check(salt: bytes) -> str:
    """Return a value that shows whether two builds used the same salt, and nothing else."""
    return _keyed(b"check", b"", salt)


def _keyed(purpose: bytes, content: bytes, salt: bytes) -> str:
    return hashlib.blake2b(content, key=hashlib.sha256(salt).digest(), person=purpose, digest_size=16).hexdigest()
