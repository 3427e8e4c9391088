"""Strict models of bundle.json: a bundle predicts as its writer intended, or not at all."""

import json
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import Field

from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.config.schema import Batch, Fold, Mean, Name, Side, Std, Weight
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.runs.state import LineageModel
from pneumo_dist.scoring.stored import RuleModel
from shards.stored import Strict

FORMAT, FORMAT_VERSION = "pneumo_dist-bundle", 2
_Text = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]*$", max_length=1000)]
_MOST_PARTS = 10_000


class FirstPartModel(Strict):
    """A network of a bundle of version 1."""

    name: _Text
    member: Annotated[int, Field(ge=0, le=10**6)]
    fold: Fold
    weight: Weight
    file: Annotated[str, Field(pattern=r"^weights/[0-9]+\.safetensors$")]
    model: ModelConfig
    amp: Resolved
    lineage: LineageModel


class PartModel(FirstPartModel):
    """A network of the bundle; `input` is the position of its input in `inputs`, `tta` its member's own views."""

    input: Annotated[int, Field(ge=0, lt=_MOST_PARTS)]
    tta: TtaConfig | None = None


class InputModel(Strict):
    """What a network takes of a film."""

    image_size: Side
    in_channels: Literal[1, 3]
    mean: Mean
    std: Std


class _Settings(Strict):
    """What all versions of bundle.json have, except the scores, which only the model card uses."""

    name: Name
    eval_batch: Batch
    tta: TtaConfig
    amp: Literal["auto", "bf16", "fp16", "float32"] | None
    rule: RuleModel


class FirstBundleModel(_Settings):
    """bundle.json of version 1: all networks have one input, whose side is also that of the maps."""

    preprocessing: InputModel
    parts: list[FirstPartModel]


class BundleModel(_Settings):
    """bundle.json of this version. `image_size` is the side of the maps."""

    image_size: Side
    inputs: Annotated[list[InputModel], Field(min_length=1, max_length=_MOST_PARTS)]
    parts: Annotated[list[PartModel], Field(min_length=1, max_length=_MOST_PARTS)]

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> Self:
        if len({(part.name, part.member) for part in self.parts}) != len(self.parts):
            raise ValueError("two parts of a member have the same name")
        # Members with the same checkpoint share its file.
        files = {(part.name, part.file) for part in self.parts}
        if len({file for _, file in files}) != len(files):
            raise ValueError("two parts of different names have the same file")
        if len({name for name, _ in files}) != len(files):
            raise ValueError("two parts of the same name have different files")
        weights = {part.member: part.weight for part in self.parts}
        if any(part.weight != weights[part.member] for part in self.parts):
            raise ValueError("the parts of a member have different weights")
        if self.rule.rule().needs_class and not any(part.model.classification for part in self.parts):
            raise ValueError("rule.gate asks for a class probability, and no part has a classification head")
        if all(part.model.is_classifier for part in self.parts):
            raise ValueError("no part has a map")
        if self.rule.outside:
            raise ValueError("rule.outside asks for class probabilities from outside, which a bundle does not have")
        return self

    @pydantic.model_validator(mode="after")
    def _inputs_agree(self) -> Self:
        if len(set(self.inputs)) != len(self.inputs):
            raise ValueError("inputs has the same input twice")
        unknown = [part.input for part in self.parts if part.input >= len(self.inputs)]
        if unknown:
            raise ValueError(f"a part has input {unknown[0]}, but inputs has {len(self.inputs)}")
        if len({part.input for part in self.parts}) < len(self.inputs):
            raise ValueError("inputs has one that no part takes")
        if any(part.model.in_channels != self.inputs[part.input].in_channels for part in self.parts):
            raise ValueError("a part takes another number of channels than its input")
        return self


def from_version_1(content: dict[str, Any]) -> bytes:
    """Return bundle.json of this version for a valid one of version 1."""
    only = content["preprocessing"]
    parts = [{**part, "input": 0} for part in content["parts"]]
    return json.dumps({**content, "image_size": only["image_size"], "inputs": [only], "parts": parts}).encode()
