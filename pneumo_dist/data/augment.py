"""Augmentation parameters of a sample: a pure function of (seed, epoch, key).

geometry.py applies them in one resampling; dali.py and torch_loader.py apply them to grey values.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from pneumo_dist.config.augment import AugmentConfig, Distortion, Elastic, Optical, RandomResizedCrop, Tone
from pneumo_dist.data.elastic import ElasticField, InputElastic
from pneumo_dist.data.geometry import Geometry, GridSteps, Lens, Warp
from pneumo_dist.data.plan import stream

_AUGMENT = 3
UNMOVED = Geometry()
WHOLE = UNMOVED.crop
# Recipes state lengths in pixels of the competition's films.
_FILM_SIDE = 1024
_GRID_STEPS = 5
# Noise is a window of one field, which is larger by this many rows and columns.
NOISE_OFFSETS = 128


@dataclass(frozen=True)
class Parameters:
    """All augmentation of one film: geometry, then CLAHE, tone and noise.

    Grey values x in 0..1 become clip(gain·x + offset + mean_offset·mean)^gamma, where mean is that of the stored film.
    Then `noise_sigma` times a window of the noise field is added; the window starts at `noise_origin` (row, column).
    `crop_origin` (x, y), from 0 to below 1, is where a stage that trains on crops takes one; `cropped` uses it.
    """

    geometry: Geometry = UNMOVED
    clahe: bool = False
    gain: float = 1.0
    offset: float = 0.0
    mean_offset: float = 0.0
    gamma: float = 1.0
    noise_sigma: float = 0.0
    noise_origin: tuple[int, int] = (0, 0)
    crop_origin: tuple[float, float] = (0.0, 0.0)


IDENTITY = Parameters()


def draw(config: AugmentConfig, seed: int, epoch: int, key: str) -> Parameters:
    """Draw the parameters of one film in one epoch.

    Every number is drawn whether it is used or not, so changing one probability changes no other draw.
    """
    random = stream(seed, _AUGMENT, epoch, key)
    chance = random.random(8)
    unit = random.uniform(-1.0, 1.0, 10)
    shape = random.uniform(-1.0, 1.0, 2 * _GRID_STEPS)
    field = int(random.integers(2**63))
    origin = random.integers(NOISE_OFFSETS, size=2)
    corner = random.random(2)

    moves, noise = config.shift_scale_rotate, config.noise
    is_moved = chance[1] < moves.p
    return Parameters(
        geometry=Geometry(
            flip=bool(chance[0] < config.hflip),
            angle=math.radians(moves.rotate * unit[0]) if is_moved else 0.0,
            scale=1.0 + moves.scale * unit[1] if is_moved else 1.0,
            shift=(moves.shift * unit[2], moves.shift * unit[3]) if is_moved else (0.0, 0.0),
            warp=_warp(config.distortion, chance[2], chance[3], shape, field),
            crop=_crop(config.random_resized_crop, unit[5:9]) if chance[6] < config.random_resized_crop.p else WHOLE,
        ),
        clahe=bool(chance[7] < config.clahe.p),
        **_tone(config.tone, chance[4], chance[5], unit[4]),
        noise_sigma=_noise_sigma(noise.p, noise.sigma, unit[9]),
        noise_origin=(int(origin[0]), int(origin[1])),
        crop_origin=(float(corner[0]), float(corner[1])),
    )


def cropped(drawn: Parameters, size: int, film_size: int) -> Parameters:
    """Return a film's parameters for a crop of `size` pixels from the augmented film of `film_size` pixels.

    The crop starts at a whole pixel; all film_size - size + 1 positions along an axis are equally likely.
    """
    share, geometry = size / film_size, drawn.geometry
    left, top, width, height = geometry.crop
    x, y = (math.floor(origin * (film_size - size + 1)) / film_size for origin in drawn.crop_origin)
    window = (left + width * x, top + height * y, width * share, height * share)
    warp = geometry.warp.in_crops(share) if isinstance(geometry.warp, InputElastic) else geometry.warp
    return replace(drawn, geometry=replace(geometry, crop=window, warp=warp))


def _tone(config: Tone, chance: float, choice: float, unit: float) -> dict[str, float]:
    """Return the one parameter of tone that is drawn, if any."""
    if chance >= config.p:
        return {}
    kinds = [name for name in ("contrast", "gamma", "brightness") if getattr(config, name) is not None]
    kind = kinds[int(choice * len(kinds))]
    if kind == "contrast":
        assert config.contrast is not None
        return {"gain": 1.0 + config.contrast * unit}
    if kind == "brightness":
        assert config.brightness is not None
        return {"offset" if config.brightness_by == "range" else "mean_offset": config.brightness * unit}
    assert config.gamma is not None
    gamma = _between(*config.gamma, unit)
    return {"gamma": gamma if config.gamma_exponent == "g" else 1.0 / gamma}


def _noise_sigma(p: float, sigma: tuple[float, float], unit: float) -> float:
    """Return 0, or a standard deviation with the sign of the field; one draw decides all of it."""
    share = 0.5 * (unit + 1.0)
    if share >= p:
        return 0.0
    half, position = divmod(2.0 * share / p, 1.0)
    return (1.0 if half else -1.0) * _between(*sigma, 2.0 * position - 1.0)


def _warp(config: Distortion, chance: float, choice: float, shape: np.ndarray, field: int) -> Warp | None:
    if chance >= config.p:
        return None
    kinds = [kind for kind in (config.elastic, config.grid, config.optical) if kind is not None]
    kind = kinds[int(choice * len(kinds))]
    if isinstance(kind, Elastic):
        if kind.pixels == "input":
            return InputElastic(field, kind.alpha, kind.sigma, tuple((kind.alpha_affine * shape[:6]).tolist()))
        corners = tuple((kind.alpha_affine / _FILM_SIDE * shape[:6]).tolist())
        return ElasticField(field, kind.alpha / _FILM_SIDE, kind.sigma / _FILM_SIDE, corners)
    if isinstance(kind, Optical):
        reach = kind.shift / _FILM_SIDE
        return Lens(kind.distort * float(shape[0]), (reach * float(shape[1]), reach * float(shape[2])))
    columns, rows = (tuple((1.0 + kind * draws).tolist()) for draws in (shape[:_GRID_STEPS], shape[_GRID_STEPS:]))
    return GridSteps(columns, rows, config.grid_open)


def _crop(config: RandomResizedCrop, unit: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, top, width and height as shares of the side; the aspect is clamped so that the area fits."""
    area = _between(*config.area, unit[0])
    aspect = math.exp(_between(math.log(config.aspect[0]), math.log(config.aspect[1]), unit[1]))
    aspect = min(max(aspect, area), 1.0 / area)
    width, height = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
    return (1.0 - width) * _between(0, 1, unit[2]), (1.0 - height) * _between(0, 1, unit[3]), width, height


def _between(low: float, high: float, unit: float) -> float:
    return float(low + (high - low) * 0.5 * (unit + 1.0))
