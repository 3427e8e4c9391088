"""The schema of augmentation. Every parameter drawn from it depends on (seed, epoch, key) alone.

Geometry composes into one resampling; then come CLAHE, tone and noise, in this order.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import Probability, Schema

# Pixels of a 1024 px film.
Length = Annotated[float, Field(ge=0, le=1024)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]


class ShiftScaleRotate(Schema):
    """Shift, scale and rotate about the centre in one draw."""

    p: Probability = 0.5
    """Probability."""
    shift: Probability = 0.0625
    """Largest shift along each axis, as a share of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Largest change of scale: factors from 1 − scale to 1 + scale."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 45.0
    """Largest rotation, degrees."""


class Elastic(Schema):
    """Random smooth displacements; lengths in pixels of a 1024 px film."""

    alpha: Annotated[float, Field(ge=0, le=1e5)] = 120.0
    """Factor of the smoothed noise."""
    sigma: Annotated[float, Field(ge=0.1, le=1024)] = 6.0
    """Gaussian smoothing of the noise."""
    alpha_affine: Length = 3.6
    """Largest shift of the three points that define a random affine part."""


class Optical(Schema):
    """Barrel and pincushion distortion, radius r in shares of the side: r·(1 + k·r² + k·r⁴)."""

    distort: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Largest k, either sign."""
    shift: Length = 0.5
    """Largest shift of the optical axis along each axis, pixels of a 1024 px film."""


class Distortion(Schema):
    """One of elastic, grid and optical distortion, each as likely as the others; null leaves one out."""

    p: Probability = 0.0
    """Probability of any."""
    elastic: Elastic | None = Elastic()
    grid: Annotated[float, Field(gt=0, lt=1)] | None = 0.3
    """Largest change of the width of one of five columns (heights of rows): factors from 1 − grid to 1 + grid."""
    optical: Optical | None = Optical()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.p and self.elastic is None and self.grid is None and self.optical is None:
            raise ValueError("p is above 0, but elastic, grid and optical are all null")
        return self


class RandomResizedCrop(Schema):
    """A window of the film, stretched to the network's input."""

    p: Probability = 0.0
    """Probability."""
    area: tuple[Probability, Probability] = (0.6, 1.0)
    """Smallest and largest share of the area."""
    aspect: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """Smallest and largest ratio of width to height."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] or self.aspect[0] > self.aspect[1]:
            raise ValueError("area and aspect are [smallest, largest], above 0")
        return self


class Tone(Schema):
    """One of contrast, gamma and brightness, each as likely as the others; null leaves one out."""

    p: Probability = 0.3
    """Probability of any."""
    contrast: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    """Largest change of contrast: grey values times 1 − contrast to 1 + contrast."""
    gamma: tuple[Ratio, Ratio] | None = (0.8, 1.2)
    """Smallest and largest exponent of grey values in 0..1."""
    brightness: Probability | None = 0.2
    """Largest shift, as a share of full scale."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.p and self.contrast is None and self.gamma is None and self.brightness is None:
            raise ValueError("p is above 0, but contrast, gamma and brightness are all null")
        if self.gamma is not None and self.gamma[0] > self.gamma[1]:
            raise ValueError("gamma is [smallest, largest]")
        return self


class Noise(Schema):
    """Gaussian noise, a standard deviation drawn for each film."""

    p: Probability = 0.0
    """Probability."""
    sigma: tuple[Probability, Probability] = (0.01, 0.05)
    """Smallest and largest standard deviation, as a share of full scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError("sigma is [smallest, largest]")
        return self


class Clahe(Schema):
    """Contrast-limited adaptive histogram equalisation (K. Zuiderveld, 1994)."""

    p: Probability = 0.0
    """Probability."""
    clip: Annotated[float, Field(ge=1, le=256)] = 2.0
    """Clip limit, in multiples of a flat histogram's bins."""
    tiles: Annotated[int, Field(ge=1, le=64)] = 8
    """Tiles along each axis."""


class AugmentConfig(Schema):
    """Augmentation of training films."""

    border: Literal["constant", "reflect"] = "constant"
    """Beyond the film's edges: 0 (as its padding), or the film mirrored; the mask likewise."""
    hflip: Probability = 0.5
    """Probability of a horizontal flip."""
    shift_scale_rotate: ShiftScaleRotate = ShiftScaleRotate()
    distortion: Distortion = Distortion()
    random_resized_crop: RandomResizedCrop = RandomResizedCrop()
    clahe: Clahe = Clahe()
    tone: Tone = Tone()
    noise: Noise = Noise()
