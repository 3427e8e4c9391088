"""Strict models of bundle.json: a bundle predicts as its writer intended, or not at all."""

from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.schema import Batch, Fold, Mean, Name, Side, Std, Weight
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.runs.state import LineageModel
from pneumo_dist.scoring.stored import RuleModel
from shards.stored import Strict

FORMAT, FORMAT_VERSION = "pneumo_dist-bundle", 1
_Text = Annotated[str, Field(min_length=1, max_length=1000)]


class PartModel(Strict):
    """A network of the bundle."""

    name: _Text
    member: Annotated[int, Field(ge=0, le=10**6)]
    fold: Fold
    weight: Weight
    file: Annotated[str, Field(pattern=r"^weights/[0-9]+\.safetensors$")]
    model: ModelConfig
    amp: Resolved
    lineage: LineageModel


class PreprocessingModel(Strict):
    """The input of the networks."""

    image_size: Side
    in_channels: Literal[1, 3]
    mean: Mean
    std: Std


class BundleModel(Strict):
    """All of bundle.json except the scores, which only the model card uses."""

    name: Name
    preprocessing: PreprocessingModel
    eval_batch: Batch
    tta: TtaConfig
    amp: Literal["auto", "bf16", "fp16", "float32"] | None
    rule: RuleModel
    parts: Annotated[list[PartModel], Field(min_length=1, max_length=10_000)]

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        for field in ("name", "file"):
            if len({getattr(part, field) for part in self.parts}) != len(self.parts):
                raise ValueError(f"two parts have the same {field}")
        weights = {part.member: part.weight for part in self.parts}
        if any(part.weight != weights[part.member] for part in self.parts):
            raise ValueError("the parts of a member have different weights")
        if any(part.model.in_channels != self.preprocessing.in_channels for part in self.parts):
            raise ValueError("a part takes another number of channels than preprocessing.in_channels")
        if self.rule.gate > 0 and not any(part.model.classification for part in self.parts):
            raise ValueError("rule.gate asks for a class probability, and no part has a classification head")
        return self
