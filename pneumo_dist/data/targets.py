"""What a film's pixels should become, for stages that learn from maps or films without labels. Imports no torch."""

import numpy as np

from pneumo_dist.data.augment import Parameters
from pneumo_dist.data.films import FilmReader, FilmRequest
from pneumo_dist.data.geometry import Stored, coarse_map, matrix
from pneumo_dist.data.resample import LINEAR, NEAREST, Image, by_coarse_map, by_matrix
from pneumo_dist.maps.labels import MapLabels


def target(reader: FilmReader, request: FilmRequest, parameters: Parameters) -> Image:
    """Return a film's target, uint8 (size, size) of 0 to 255, augmented like its image.

    It is 0 or 255 from a mask, which a teacher's map may change in part, any level from a pseudo-label, and 0 for a
    film with neither.

    Raises CorruptSample or InputError, naming the film, for a label or a map that cannot be read.
    """
    size = reader.input_spec.size
    if reader.is_labelled(request.index):
        content = reader.read_member(request, "mask")
        mask = reader.decode(content)
        if mask is None:
            raise reader.undecodable(request)
        resampled = _resampled(mask, reader, parameters, reader.stored(request), NEAREST)
        levels = np.where(resampled > 127, 255, 0).astype(np.uint8)
        if reader.maps is None or reader.maps.teacher is None:
            return levels
        share, taught = reader.maps.share, _map(reader.maps.teacher, reader, request, parameters)
        return np.rint((1 - share) * levels + share * taught).astype(np.uint8)
    if reader.maps is None or reader.maps.pseudo is None:
        return np.zeros((size, size), np.uint8)
    return _map(reader.maps.pseudo, reader, request, parameters)


def _map(labels: MapLabels, reader: FilmReader, request: FilmRequest, parameters: Parameters) -> Image:
    p8 = labels.p8(request.index)
    # A map covers the film's square, whatever the size of the stored film.
    return _resampled(p8, reader, parameters, Stored(len(p8)), LINEAR)


def _resampled(image: Image, reader: FilmReader, parameters: Parameters, stored: Stored, interpolation: int) -> Image:
    geometry, size = parameters.geometry, reader.input_spec.size
    if geometry.warp is not None:
        nodes = coarse_map(geometry, size, stored)
        return by_coarse_map((image,), nodes, size, reader.border, (interpolation,))[0]
    return by_matrix((image,), matrix(geometry, size, stored), size, reader.border, (interpolation,))[0]
