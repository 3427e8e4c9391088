"""Augmentation parameters of a sample: a pure function of (seed, epoch, key).

All geometry composes into one matrix, so image and mask are resampled once. Pixels from outside the film are 0, as
in its padding.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumo_dist.config import AugmentConfig
from pneumo_dist.data.plan import stream

Matrix = npt.NDArray[np.float64]

_AUGMENT = 3


@dataclass(frozen=True)
class Parameters:
    """`flip`, `angle` (radians), `scale`, `shift` (x, y as shares of the side), and gain·x + offset for x in [0, 1]."""

    flip: bool = False
    angle: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0
    offset: float = 0.0


IDENTITY = Parameters()


def draw(config: AugmentConfig, seed: int, epoch: int, key: str) -> Parameters:
    """Return the parameters of one film in one epoch.

    Every number is drawn whether it is used or not, so that changing one probability moves no other draw.
    """
    random = stream(seed, _AUGMENT, epoch, key)
    chance = random.random(3)
    unit = random.uniform(-1.0, 1.0, 6)
    moves, tones = config.shift_scale_rotate, config.brightness_contrast
    move, tone = chance[1] < moves.p, chance[2] < tones.p
    gain = 1.0 + tones.contrast * unit[4] if tone else 1.0
    return Parameters(
        flip=bool(chance[0] < config.hflip),
        angle=math.radians(moves.rotate * unit[0]) if move else 0.0,
        scale=1.0 + moves.scale * unit[1] if move else 1.0,
        shift=(moves.shift * unit[2], moves.shift * unit[3]) if move else (0.0, 0.0),
        gain=gain,
        offset=0.5 * (1.0 - gain) + (tones.brightness * unit[5] if tone else 0.0),
    )


def matrix(parameters: Parameters, size: int, stored: int, origin: tuple[int, int] = (0, 0)) -> Matrix:
    """Return the 2x3 map from pixels of the network's (size, size) input to those of the stored image.

    The image begins at `origin` (x, y) of a (stored, stored) square.

    Coordinates count from the corner of the first pixel (its centre is at 0.5), x before y.
    """
    cosine, sine = math.cos(parameters.angle), math.sin(parameters.angle)
    to_centre = _affine(1, 0, 0, 1, -size * (0.5 + parameters.shift[0]), -size * (0.5 + parameters.shift[1]))
    turn = _affine(cosine, sine, -sine, cosine, 0, 0)
    zoom = stored / size / parameters.scale
    flip = -1 if parameters.flip else 1
    back = _affine(flip * zoom, 0, 0, zoom, stored / 2 - origin[0], stored / 2 - origin[1])
    return (back @ turn @ to_centre)[:2]


def _affine(xx: float, xy: float, yx: float, yy: float, x: float, y: float) -> Matrix:
    return np.array([[xx, xy, x], [yx, yy, y], [0.0, 0.0, 1.0]])
