"""Finds pneumothorax on films from Python: one film in memory, or many files with flat memory."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from pneumo_dist.data.normalise import single_batch
from pneumo_dist.maps.store import Predictions
from pneumo_dist.output.found import FilmPrediction, Found, find
from pneumo_dist.predict.bundle import read_bundle
from pneumo_dist.predict.ensemble import Ensemble
from pneumo_dist.predict.forward import NetworkCache, predict_films
from pneumo_dist.predict.memory import batch_bytes, free_bytes, held_in_memory, network_bytes
from pneumo_dist.predict.new_films import NewFilm, NewFilmOptions, RefusedFilm, film_shards, row_films
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.ranks import Ranks, pick_device
from pneumo_dist.scoring.masks import Rule
from shards.build.images import film_of_array
from shards.build.sample import read_film_file
from shards.dataset.grid import fit_square, square_pixels, to_square
from shards.dataset.table import LabelGrid
from shards.dicom.film import Film, FilmInfo, FilmRules, film_of
from shards.errors import InputError, RejectedFilm

__all__ = ["Found", "Segmenter"]

_DEFAULT_RULES = FilmRules()
# Films between two reports of progress while files are read.
_REPORTED = 16


@dataclass(frozen=True, eq=False)
class SegmentedFile:
    """A film file as the network's reader shows it, and what was found on it."""

    source: NewFilm
    film: Film
    found: Found


class Segmenter:
    """The networks and the rule of a bundle, ready for films. For research use only, not for diagnosis.

    It may be used from several threads. Films are read and predicted one after the other; masks are made side by side.
    """

    def __init__(self, ensemble: Ensemble, rule: Rule, ranks: Ranks, film_rules: FilmRules = _DEFAULT_RULES) -> None:
        self.ensemble, self.rule, self.film_rules = ensemble, rule, film_rules
        self._ranks, self._lock = ranks, threading.Lock()

    @classmethod
    def load(cls, bundle: Path | str, cpu: bool = False, film_rules: FilmRules = _DEFAULT_RULES) -> Self:
        """Open a bundle written by `average --bundle`, for the GPU if there is one. The first film reads the weights.

        Args:
            bundle: The file.
            cpu: Use the CPU even if there is a GPU.
            film_rules: Which films are accepted; as for `segment`, frontal chest films are by default.

        Raises:
            InputError: The bundle is missing or damaged, or a GPU is present but unusable.
        """
        ensemble, rule = read_bundle(Path(bundle))
        return cls(ensemble, rule, Ranks.alone(pick_device(0, cpu)), film_rules)

    def __call__(self, film: Path | str | Dataset | npt.NDArray[Any]) -> Found:
        """Find pneumothorax on one film.

        Its map can differ from that of `segment` by a level of 255, which predicts films in batches.

        Args:
            film: The path of a DICOM, PNG or JPEG file, a pydicom data set with its pixels, or grey values as uint8 or
                uint16: (height, width), or (height, width, 3 or 4) for RGB(A). Arrays are taken as PNG files are.

        Raises:
            RejectedFilm: The film cannot be read or the film rules refuse it. The message names it.
        """
        read = self._read(film)
        return find(read, self._predicted(read), self.rule)

    def files(
        self,
        films: Sequence[NewFilm],
        scratch: Path,
        strict: bool = False,
        on_read: Callable[[int], None] | None = None,
        on_predicted: Callable[[int], None] = lambda count: None,
    ) -> Iterator[SegmentedFile | RefusedFilm]:
        """Find pneumothorax on many files, in the order of their keys. Refused ones come first.

        The films are read into shards and predicted in fixed batches, as `predict` does, so memory does not grow with
        their number.

        Args:
            films: The films, with distinct names.
            scratch: Empty folder for decoded films and predictions, which the caller removes.
            strict: Refuse films with a warning.
            on_read: Called with the number of films of each finished shard.
            on_predicted: Called with the number of films that were predicted.
        """
        options = NewFilmOptions(self.ensemble.film_size, self.film_rules, strict, _REPORTED)
        shards, refused = film_shards(films, scratch / "films", options, on_film=on_read)
        yield from refused
        if shards is None:
            return
        try:
            predict(self.ensemble, shards, scratch / "predictions", self._ranks, PredictOptions(), on_predicted)
            predictions = Predictions(scratch / "predictions")
            film_of_key = dict(zip(shards.column("key").tolist(), row_films(shards, films), strict=True))
            for number, (row, p8) in enumerate(predictions):
                source = film_of_key[row["key"]]
                prediction = FilmPrediction(p8, predictions.grid(number), row["class_probability"])
                try:
                    film = read_film_file(source.path, self.film_rules)
                except RejectedFilm as reason:  # it was changed or removed meanwhile
                    yield RefusedFilm(source.path, str(reason))
                else:
                    yield SegmentedFile(source, film, find(film, prediction, self.rule))
        finally:
            shards.close()

    def _read(self, film: Path | str | Dataset | npt.NDArray[Any]) -> Film:
        try:
            if isinstance(film, Dataset):
                name = str(film.get("SOPInstanceUID") or "the data set")
                return film_of(film, self.film_rules)
            if isinstance(film, np.ndarray):
                name = "the array"
                image, warnings = film_of_array(film, self.film_rules.max_pixels)
                return Film(image, FilmInfo(), warnings)
            if isinstance(film, (str, Path)):
                name = str(film)
                return read_film_file(Path(film), self.film_rules)
        except RejectedFilm as reason:
            raise RejectedFilm(f"{name}: refused, {reason}") from None
        raise InputError(f"a film of type {type(film).__name__}; give a path, a pydicom data set or a numpy array")

    def _predicted(self, film: Film) -> FilmPrediction:
        """Predict a film as a batch of one, from the square image that shards would hold."""
        size, ensemble = self.ensemble.film_size, self.ensemble
        picture = square_pixels(film.image, film.aspect)
        (rows, columns), (height, width) = film.image.shape, picture.shape
        grid = LabelGrid(rows, columns, fit_square(height, width, size), size)
        square, row = to_square(picture, size), np.zeros(1, np.int64)
        with self._lock:
            batches = {
                each: iter([single_batch(square, ensemble.input_spec(each, self._ranks))]) for each in ensemble.inputs
            }
            predicted = predict_films([row], batches, ensemble.networks, self._networks).on_host()
        head = float(predicted.classes[0])
        return FilmPrediction(predicted.maps[0], grid, None if np.isnan(head) else head)

    @cached_property
    def _networks(self) -> NetworkCache:
        """The networks in memory: all of them if they fit, else one at a time."""
        ensemble, ranks = self.ensemble, self._ranks
        sizes = network_bytes(ensemble.networks)
        held = held_in_memory(free_bytes(ranks), sizes, batch_bytes(ensemble), least=1)
        return NetworkCache(ensemble, ranks, held.networks, None)
