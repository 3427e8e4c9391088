"""Base class and value types of the configuration schemas."""

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Unit:
    """The unit of a number, for the reference of the config's keys."""

    name: str


# Far above any useful value. A larger one is a typing error that would overflow or exhaust memory.
LARGEST = 1e9
LARGEST_SIDE = 8192
LARGEST_BATCH = 4096
# Pixels of a label grid. By default, the largest film that a build accepts has 144 million.
LARGEST_AREA = 2**31

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=1, le=int(LARGEST))]
Whole = Annotated[int, Field(ge=0, le=int(LARGEST))]
Epochs = Annotated[Count, Unit("epochs")]
Steps = Annotated[Count, Unit("steps")]
# A year at most.
Minutes = Annotated[float, Field(gt=0, le=525_600), Unit("min")]
Side = Annotated[int, Field(ge=32, le=LARGEST_SIDE, multiple_of=32), Unit("px")]
Batch = Annotated[int, Field(ge=1, le=LARGEST_BATCH), Unit("films")]
Area = Annotated[int, Field(ge=0, le=LARGEST_AREA), Unit("px")]
Fold = Annotated[int, Field(ge=0, lt=10_000)]
Channels = Annotated[int, Field(ge=1, le=2048)]
Mean = tuple[Probability, Probability, Probability]
# With a smaller deviation, one grey level would become a value in the hundreds.
Deviation = Annotated[float, Field(ge=1e-5, le=1)]
Std = tuple[Deviation, Deviation, Deviation]
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=200)]
# Names of encoders and weights. Addresses are excluded, because some libraries would download from them.
LibraryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=200)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FilePath = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]


class Schema(BaseModel):
    """A frozen model without unknown keys or non-finite numbers. The docstring below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject booleans, which YAML also reads from `yes` and `on` and which would pass as 1."""
        field = cls.model_fields[str(info.field_name)].annotation
        values = value if isinstance(value, list | tuple) else (value,)
        if field is not bool and bool not in get_args(field) and any(isinstance(each, bool) for each in values):
            raise ValueError("is a boolean (true, yes, on, false, no, off), but another type is expected")
        return value


def keys_of_schema(schema: type[Schema]) -> list[str]:
    """Return the keys of a schema as a config file names them."""
    return [field.alias or name for name, field in schema.model_fields.items()]


def nested_schema(field: FieldInfo) -> type[Schema] | None:
    """Return the schema of a field that is one, or may be one."""
    arguments = () if get_origin(field.annotation) is tuple else get_args(field.annotation)
    for each in (field.annotation, *arguments):
        if isinstance(each, type) and issubclass(each, Schema):
            return each
    return None
