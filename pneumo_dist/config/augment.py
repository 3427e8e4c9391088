"""Schema of augmentation.

All geometric changes are combined into one resampling. CLAHE, tone and noise follow in this order. What is drawn for a
film depends only on the seed, the epoch and the film's key.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import Probability, Schema

# Pixels of a 1024 px film.
Length = Annotated[float, Field(ge=0, le=1024)]
Ratio = Annotated[float, Field(ge=0.01, le=100)]


class ShiftScaleRotate(Schema):
    """Shift, scale and rotate about the centre, drawn together."""

    p: Probability = 0.5
    """Probability of the change."""
    shift: Probability = 0.0625
    """Maximum shift along each axis, as a fraction of the side."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Maximum change of scale: factors range from 1 − scale to 1 + scale."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 45.0
    """Maximum rotation in degrees."""


class Elastic(Schema):
    """Elastic distortion by random smooth displacements."""

    pixels: Literal["film", "input"] = "film"
    """Pixels that the lengths count. film: of a 1024 px film, and the noise is smoothed over at least 16 of them.
    input: of the film as large as the network sees it, whatever its size, and the noise is as fine as sigma (at least
    1)."""
    alpha: Annotated[float, Field(ge=0, le=1e5)] = 120.0
    """Amplitude: factor of the smoothed noise."""
    sigma: Annotated[float, Field(ge=0.1, le=1024)] = 6.0
    """Standard deviation of the Gaussian that smooths the noise."""
    alpha_affine: Length = 3.6
    """Maximum shift of the three points that define a random affine transform."""

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        if self.pixels == "input" and self.sigma < 1:
            raise ValueError("sigma must be at least 1 if pixels is input")
        return self


class Optical(Schema):
    """Barrel and pincushion distortion: radius r becomes r·(1 + k·r² + k·r⁴), in fractions of the side."""

    distort: Annotated[float, Field(ge=0, le=1000)] = 2.0
    """Maximum of k, in either direction."""
    shift: Length = 0.5
    """Maximum shift of the optical centre along each axis, in pixels of a 1024 px film."""


class Distortion(Schema):
    """Elastic, grid or optical distortion, chosen at random with equal probability."""

    p: Probability = 0.0
    """Probability of a distortion."""
    elastic: Elastic | None = Elastic()
    """Elastic distortion; null excludes it."""
    grid: Annotated[float, Field(gt=0, lt=1)] | None = 0.3
    """Maximum change of the width of each of five columns and the height of each of five rows: factors range from
    1 − grid to 1 + grid; null excludes grid distortion."""
    grid_open: bool = False
    """Let the columns and rows add up to less or more than the film, which is then cut or shows its border. Otherwise
    they are scaled so that the film keeps its size."""
    optical: Optical | None = Optical()
    """Optical distortion; null excludes it."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.p and self.elastic is None and self.grid is None and self.optical is None:
            raise ValueError("p is above 0, but elastic, grid and optical are all null")
        return self


class RandomResizedCrop(Schema):
    """Crop a random window and stretch it to the network's input."""

    p: Probability = 0.0
    """Probability of the crop."""
    area: tuple[Probability, Probability] = (0.6, 1.0)
    """Minimum and maximum area of the window, as a fraction of the film's area."""
    aspect: tuple[Ratio, Ratio] = (0.75, 4 / 3)
    """Minimum and maximum aspect ratio of the window, width to height."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.area[0] <= self.area[1] or self.aspect[0] > self.aspect[1]:
            raise ValueError("area and aspect must be [minimum, maximum], above 0")
        return self


class Tone(Schema):
    """Change of contrast, gamma or brightness, chosen at random with equal probability."""

    p: Probability = 0.3
    """Probability of a change."""
    contrast: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    """Maximum change of contrast: grey values are multiplied by 1 − contrast to 1 + contrast; null excludes it."""
    gamma: tuple[Ratio, Ratio] | None = (0.8, 1.2)
    """Minimum and maximum of g, which gives the exponent of grey values in 0..1; null excludes gamma."""
    gamma_exponent: Literal["g", "1/g"] = "g"
    """Exponent for a drawn g."""
    brightness: Probability | None = 0.2
    """Maximum shift of grey values, as a fraction of `brightness_by`; null excludes it."""
    brightness_by: Literal["range", "mean"] = "range"
    """Unit of brightness: full scale, or the mean of the stored film, before all other augmentation."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.p and self.contrast is None and self.gamma is None and self.brightness is None:
            raise ValueError("p is above 0, but contrast, gamma and brightness are all null")
        if self.gamma is not None and self.gamma[0] > self.gamma[1]:
            raise ValueError("gamma must be [minimum, maximum]")
        return self


class Noise(Schema):
    """Gaussian noise with a standard deviation drawn for each film."""

    p: Probability = 0.0
    """Probability of noise."""
    sigma: tuple[Probability, Probability] = (0.01, 0.05)
    """Minimum and maximum standard deviation, as a fraction of full scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.sigma[0] > self.sigma[1]:
            raise ValueError("sigma must be [minimum, maximum]")
        return self


class Clahe(Schema):
    """Contrast-limited adaptive histogram equalisation (K. Zuiderveld, 1994)."""

    p: Probability = 0.0
    """Probability of equalisation."""
    clip: Annotated[float, Field(ge=1, le=256)] = 2.0
    """Clip limit, as a multiple of the count per bin of a flat histogram."""
    tiles: Annotated[int, Field(ge=1, le=64)] = 8
    """Number of tiles along each axis."""


class AugmentConfig(Schema):
    """Augmentation of training films. Images and masks get the same geometric changes."""

    border: Literal["constant", "reflect", "reflect_101"] = "constant"
    """Fill beyond the film's edges: constant is 0, like the padding; reflect mirrors film and mask; reflect_101 mirrors
    them without repeating the pixel at the edge."""
    hflip: Probability = 0.5
    """Probability of a horizontal flip."""
    shift_scale_rotate: ShiftScaleRotate = ShiftScaleRotate()
    """Random shift, scale and rotation."""
    distortion: Distortion = Distortion()
    """Random elastic, grid or optical distortion."""
    random_resized_crop: RandomResizedCrop = RandomResizedCrop()
    """Random crop, resized to the network's input."""
    clahe: Clahe = Clahe()
    """Random local contrast equalisation."""
    tone: Tone = Tone()
    """Random contrast, gamma or brightness."""
    noise: Noise = Noise()
    """Random Gaussian noise."""
