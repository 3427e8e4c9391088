"""Reads stored files as untrusted input: JSON through strict models, tables and images of bounded size."""

import hashlib
import io
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import simplejpeg

from shards.errors import InputError

# A manifest takes 200 bytes per tar, a block of predictions 1 kB per film. Parsed JSON takes up to 25 times its size.
MOST_JSON = 64 << 20
# Every row of our tables has at least a checksum, which does not compress.
BYTES_A_ROW = 4
# Run lengths compress to a fifth, constant columns to nothing. A higher ratio is a decompression bomb.
INFLATION, ANY_SIZE = 200, 64 << 20
_ROWS = 4096


class Strict(pydantic.BaseModel):
    """A model of stored values: exact types and finite numbers. Unknown keys are ignored."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class KindModel(Strict):
    """Format and version of any stored file."""

    format: Any = None
    format_version: Any = None


def parse_json(content: bytes, model: type[pydantic.BaseModel], where: object, fix: str) -> dict[str, Any]:
    """Return the mapping of a JSON text that matches a model.

    Raises InputError for any other text. The message names the source, `where`, and the key, and ends with `fix`.
    """
    if len(content) > MOST_JSON:
        raise InputError(f"{where}: larger than {MOST_JSON >> 20} MiB; {fix}")
    try:
        model.model_validate_json(content)
        return dict(json.loads(content))
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {first_fault(error)}; {fix}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where}: not valid JSON; {fix}") from None


def first_fault(error: pydantic.ValidationError) -> str:
    """Describe the first error of a validation."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return "not valid JSON"
    key = ".".join(map(str, first["loc"]))
    reason = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
    return f"damaged{f' at {key}' if key else ''} ({reason})"


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read, without waiting for a writer if it is a pipe.

    Raises InputError for a pipe, a socket and a device, which may have no end; OSError for a missing file and a folder.
    """
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise InputError(f"{path}: is a pipe, a socket or a device, not a file; remove it")
    return stream


def read_limited(path: Path, most: int, fix: str) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises InputError for a larger file, with `fix`, and otherwise as `open_regular` does.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: larger than {most >> 20} MiB; {fix}")
    return content


def read_json(path: Path, model: type[pydantic.BaseModel], fix: str, kind: str = "") -> dict[str, Any]:
    """Return the mapping of a JSON file, as `parse_json` does. `kind` describes the file in errors.

    Raises FileNotFoundError if it is missing.
    """
    return parse_json(read_limited(path, MOST_JSON, fix), model, f"{path}: {kind}" if kind else path, fix)


def read_parquet(path: Path, schema: pa.Schema, sha256: str | None, fix: str) -> pa.Table:
    """Return a table with exactly the schema's columns. Its file must have the digest `sha256`, unless that is None.

    The bytes that are hashed are those that are parsed. Raises InputError if the file is missing, damaged, different,
    or a decompression bomb.
    """
    try:
        open_regular(path).close()
        with pa.memory_map(str(path)) as source:
            content = source.read_buffer()
            if sha256 is not None and hashlib.sha256(memoryview(content)).hexdigest() != sha256:
                raise InputError(f"{path}: differs from the manifest's digest; {fix}")
            file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
            if [(field.name, field.type) for field in file.schema_arrow] != [(f.name, f.type) for f in schema]:
                raise InputError(f"{path}: its columns are not those of this format version; {fix}")
            room = ANY_SIZE + INFLATION * content.size
            if file.metadata.num_rows > content.size // BYTES_A_ROW:
                raise InputError(f"{path}: {file.metadata.num_rows} rows in {content.size} bytes; {fix}")
            # A page is decompressed as a whole, before its batches can be counted.
            if _declared_bytes(file.metadata) > room:
                raise InputError(f"{path}: holds far more than {content.size} bytes can; {fix}")
            batches = []
            for batch in file.iter_batches(batch_size=_ROWS):
                room -= batch.nbytes
                if room < 0:
                    raise InputError(f"{path}: holds far more than {content.size} bytes can; {fix}")
                batches.append(batch)
            table = pa.Table.from_batches(batches, schema=file.schema_arrow)
            table.validate(full=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: missing; {fix}") from None
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        # Damaged column names raise ValueError.
        raise InputError(f"{path}: unreadable ({' '.join(str(error).split())}); {fix}") from None
    return table


def _declared_bytes(metadata: pq.FileMetaData) -> int:
    # pyarrow ends the process over some damaged descriptions of a column, so they are not asked.
    return sum(abs(metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups))


def picture_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header of a PNG or JPEG, without decoding it; None for other bytes."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) >= 24:
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    if content[:2] != b"\xff\xd8":
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return int(height), int(width)


def stored_plainly(archive: zipfile.ZipFile, size: int) -> bool:
    """Return whether all members of an archive are uncompressed, have different names, and fit its `size` bytes."""
    members = archive.infolist()
    plain = all(each.compress_type == zipfile.ZIP_STORED and each.compress_size == each.file_size for each in members)
    # Some readers ignore case.
    are_distinct = len({each.filename.casefold() for each in members}) == len(members)
    return plain and are_distinct and sum(each.file_size for each in members) <= size


def open_append(path: Path) -> BinaryIO:
    """Open a file to append to, and create it if it is missing.

    Raises InputError for a symbolic link, whose target is neither created nor changed.
    """
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, which could point to any file; remove it")
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o666), "ab")
