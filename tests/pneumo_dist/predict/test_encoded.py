"""Encoded films reach rank 0 unchanged, and no other rank receives any."""

import math

import cv2
import numpy as np
from threaded_ranks import on_ranks

from pneumo_dist.predict.encoded import EncodedFilm, encode_films, films_on_rank_0
from pneumo_dist.predict.forward import PredictedFilms
from pneumo_dist.ranks.ranks import Ranks


def films_of(rank: int) -> list[EncodedFilm]:
    """No films on rank 1; on the others some, in no order, one of them without a class probability."""
    rows = [] if rank == 1 else [10 + rank, 4 + rank]
    return [EncodedFilm(row, math.nan if row == 4 else row / 7, bytes([row]) * (row * 3)) for row in rows]


def test_rank_0_receives_the_films_of_all_ranks_and_the_others_nothing() -> None:
    def work(ranks: Ranks) -> dict[int, EncodedFilm]:
        return films_on_rank_0(films_of(ranks.rank), ranks)

    (found, *others), exchange = on_ranks(4, work)
    expected = {film.row: film for rank in range(4) for film in films_of(rank)}
    assert repr(dict(sorted(found.items()))) == repr(dict(sorted(expected.items()))) and len(found) == 6
    assert others == [{}, {}, {}]
    # A film is its map and 24 bytes, a rank's message 8 more.
    sent = sum(len(film.content) + 24 for film in expected.values() if film.row not in (4, 10)) + 3 * 8
    assert exchange.received == [sent, 0, 0, 0]


def test_maps_are_encoded_without_loss() -> None:
    maps = np.random.default_rng(0).integers(0, 256, (2, 16, 16), np.uint8)
    films = encode_films(PredictedFilms(np.array([3, 1]), maps, np.array([0.25, np.nan])))
    assert [film.row for film in films] == [3, 1] and films[0].class_probability == 0.25
    assert math.isnan(films[1].class_probability)
    for film, p8 in zip(films, maps, strict=True):
        content = cv2.imdecode(np.frombuffer(film.content, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(content, p8)
