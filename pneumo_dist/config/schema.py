"""What every part of the configuration is made of."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

# Far above what anybody trains with: what is larger is a slip, and would end in overflow or in no memory.
LARGEST = 1e9
LARGEST_SIDE = 8192
LARGEST_BATCH = 4096
# Pixels of a label grid. The largest film that a build takes unless told otherwise has 144 million.
LARGEST_AREA = 2**31

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Count = Annotated[int, Field(ge=1, le=int(LARGEST))]
Whole = Annotated[int, Field(ge=0, le=int(LARGEST))]
Side = Annotated[int, Field(ge=32, le=LARGEST_SIDE, multiple_of=32)]
Batch = Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
Area = Annotated[int, Field(ge=0, le=LARGEST_AREA)]
Fold = Annotated[int, Field(ge=0, lt=10_000)]
Channels = Annotated[int, Field(ge=1, le=2048)]
Mean = tuple[Probability, Probability, Probability]
# Below it a grey level would be a value in the hundreds.
Deviation = Annotated[float, Field(ge=1e-5, le=1)]
Std = tuple[Deviation, Deviation, Deviation]
Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=200)]
# What the libraries call encoders and weights: no addresses, which some of them would fetch from.
LibraryName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=200)]
FilePath = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]


class Schema(BaseModel):
    """Frozen, without extra keys; the docstring under a field is its description. Every number is finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as truths, which would pass as 1."""
        field = cls.model_fields[str(info.field_name)].annotation
        values = value if isinstance(value, list | tuple) else (value,)
        if field is not bool and bool not in get_args(field) and any(isinstance(each, bool) for each in values):
            raise ValueError("a truth (true, yes, on, false, no, off) where another value is expected")
        return value
