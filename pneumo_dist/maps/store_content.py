"""Strict models of the manifest and the rows of stored predictions."""

from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, Field, TypeAdapter

from pneumo_dist.config.ensemble import MemberConfig, TtaConfig
from pneumo_dist.config.schema import LARGEST_SIDE, Fold, Probability
from pneumo_dist.scoring.stored import ClassProbability, Digest
from shards.dataset.check import LARGEST_TAR, LONGEST_SIDE, LONGEST_TEXT, MOST_BYTES, MOST_PIXELS, is_plain
from shards.dataset.keys import LONGEST_KEY
from shards.stored import Strict


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("has a line break or a control character")
    return text


_Text = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_plain)]
_Length = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
_Padding = Annotated[int, Field(ge=0, le=LONGEST_SIDE)]


class PartModel(Strict):
    """A network that predicted; manifests from before 0.2.0 may have only its name."""

    name: _Text
    fold: Fold | None = None
    weight: Probability | None = None


class ManifestModel(Strict):
    """The manifest of stored predictions. Those of classifiers have no maps."""

    films: Annotated[int, Field(ge=0, le=2**31)]
    predictions_sha256: Digest
    experiment: _Text | None = None
    split: Literal["oof", "holdout", "test", "train", "unlabelled"] | None = None
    # Of splits that a fold learns from: the fold that may learn from the maps, and the lineages of the networks.
    fold: Fold | None = None
    lineage: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    image_size: Annotated[int, Field(ge=1, le=LARGEST_SIDE)] | None = None
    tta: TtaConfig | None = None
    dataset: Digest | None = None
    parts: Annotated[list[PartModel], Field(min_length=1)] | None = None
    members: Annotated[list[MemberConfig], Field(min_length=1)] | None = None
    maps: bool = True


class RowModel(Strict):
    """A film and the position of its map; a film without a map has no position."""

    key: Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{LONGEST_KEY}}}$")]
    image_id: _Text
    group: _Text | None
    split: Literal["train", "always_train", "holdout", "test", "unlabelled"]
    rle: str | None
    fold: Fold | None
    label_height: _Length
    label_width: _Length
    pad_top: _Padding
    pad_bottom: _Padding
    pad_left: _Padding
    pad_right: _Padding
    stored: _Length
    class_probability: ClassProbability | None
    tar: Annotated[str, Field(pattern=r"^pred-[0-9]{5,}\.tar$")] | None
    offset: Annotated[int, Field(ge=0, le=LARGEST_TAR)] | None
    size: Annotated[int, Field(ge=1, le=MOST_BYTES)] | None
    crc32: Annotated[int, Field(ge=0, lt=2**32)] | None

    @pydantic.model_validator(mode="after")
    def _has_pixels(self) -> Self:
        if self.pad_top + self.pad_bottom >= self.stored or self.pad_left + self.pad_right >= self.stored:
            raise ValueError("its paddings leave no pixels")
        if len({value is None for value in (self.tar, self.offset, self.size, self.crc32)}) > 1:
            raise ValueError("its map has a part of a position")
        if self.tar is None and self.class_probability is None:
            raise ValueError("it has neither a map nor a class probability")
        if self.label_height * self.label_width > MOST_PIXELS:
            raise ValueError(f"its label grid has more than {MOST_PIXELS} pixels")
        return self


class BlockModel(Strict):
    """The record of a finished block."""

    digest: Digest
    rows: Annotated[list[RowModel], Field(min_length=1)]


ROWS: TypeAdapter[list[RowModel]] = TypeAdapter(list[RowModel])
