"""Predicted films as they are stored: each rank encodes its own, and only rank 0 receives them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pneumo_dist.maps.store import encode_map
from pneumo_dist.predict.forward import PredictedFilms
from pneumo_dist.ranks.ranks import Ranks

_FACTS = np.dtype([("row", "<i8"), ("class_probability", "<f8"), ("size", "<i8")])


@dataclass(frozen=True)
class EncodedFilm:
    """A predicted film: table row, class probability (nan for none) and the bytes of its stored map, b"" for none."""

    row: int
    class_probability: float
    content: bytes


def encode_films(films: PredictedFilms) -> list[EncodedFilm]:
    """Return the films with their maps encoded."""
    return [
        EncodedFilm(int(row), float(value), encode_map(p8) if p8.size else b"")
        for row, value, p8 in zip(films.rows, films.classes, films.maps, strict=True)
    ]


def films_on_rank_0(films: Sequence[EncodedFilm], ranks: Ranks) -> dict[int, EncodedFilm]:
    """Return the films of all ranks by table row on rank 0, and nothing on the other ranks."""
    found = [film for payload in ranks.to_rank_0(_packed(films)) for film in _unpacked(payload)]
    by_row = {film.row: film for film in found}
    assert len(by_row) == len(found), "a film was predicted twice"
    return by_row


def _packed(films: Sequence[EncodedFilm]) -> bytes:
    facts = np.array([(film.row, film.class_probability, len(film.content)) for film in films], _FACTS)
    return b"".join([len(films).to_bytes(8, "little"), facts.tobytes(), *(film.content for film in films)])


def _unpacked(payload: bytes) -> list[EncodedFilm]:
    count = int.from_bytes(payload[:8], "little")
    facts = np.frombuffer(payload, _FACTS, count, offset=8)
    ends = (8 + facts.nbytes + facts["size"].cumsum()).tolist()
    return [
        EncodedFilm(int(row), float(value), payload[end - int(size) : end])
        for (row, value, size), end in zip(facts, ends, strict=True)
    ]
