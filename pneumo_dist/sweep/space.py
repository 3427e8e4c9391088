"""The space of a sweep: which config keys are varied, and which values they take."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import pydantic
import yaml
from pydantic import Field

from pneumo_dist.config.load import load_config, parse_override
from pneumo_dist.config.schema import LARGEST, Positive
from pneumo_dist.config.yaml_text import MAX_CHARACTERS, BadYaml, parse_yaml
from shards.errors import InputError
from shards.stored import read_limited

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# A config value as text, as after KEY= in --set, or a number.
Value = str | int | float
_FINITE = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
_WHOLE = Annotated[int, Field(ge=-int(LARGEST), le=int(LARGEST))]
_KINDS = ("choices", "range", "log", "whole")
_EXAMPLES = "choices: [a, b], range: [0, 1], log: [1e-4, 1e-2] or whole: [1, 8]"
_EXAMPLE = "optim.lr: {log: [1e-4, 1e-2]}"
MOST_CHOICES, MOST_COMBINATIONS = 1000, 10_000


class Parameter(pydantic.BaseModel):
    """The values of one key: some choices, or numbers between two ends, which are included."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    choices: Annotated[tuple[Any, ...], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    """Values to choose from."""
    range: tuple[_FINITE, _FINITE] | None = None
    """Ends of an interval of numbers, all equally likely."""
    log: tuple[Positive, Positive] | None = None
    """Ends of an interval of numbers whose logarithms are equally likely."""
    whole: tuple[_WHOLE, _WHOLE] | None = None
    """Ends of an interval of whole numbers."""
    step: Positive | None = None
    """Distance of the values of range or whole."""

    @pydantic.field_validator("range", "log", "whole", "step", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any) -> Any:
        if any(isinstance(each, bool) for each in (value if isinstance(value, list) else [value])):
            raise ValueError("is a boolean (true, yes, on, false, no, off), but a number is expected")
        return value

    @pydantic.model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {_EXAMPLES}")
        if self.choices is not None:
            texts = self.texts
            if len(set(texts)) < len(texts):
                raise ValueError("names a choice twice")
        else:
            low, high = self.ends
            if low >= high:
                raise ValueError(f"{given[0]} needs a lower end below the upper end")
        if self.step is not None:
            if self.range is None and self.whole is None:
                raise ValueError("step goes with range or whole")
            if self.whole is not None and self.step != int(self.step):
                raise ValueError("the step of whole must be a whole number")
            low, high = self.ends
            if (_exact(high) - _exact(low)) % _exact(self.step):
                raise ValueError("the step must divide the distance of the ends")
        return self

    @property
    def ends(self) -> tuple[float, float] | tuple[int, int]:
        """Lower and upper end of an interval."""
        ends = self.range or self.log or self.whole
        assert ends is not None
        return ends

    @property
    def texts(self) -> tuple[str, ...]:
        """The choices as texts, none for an interval."""
        return tuple(map(_text, self.choices or ()))

    @property
    def values(self) -> tuple[Value, ...] | None:
        """All values of the key in their order, None if there are too many to try."""
        if self.choices is not None:
            return self.texts
        step = self.step or (1 if self.whole is not None else None)
        if step is None:
            return None
        low, high = self.ends
        count = int((_exact(high) - _exact(low)) / _exact(step)) + 1
        if count > MOST_COMBINATIONS:
            return None
        exact = [_exact(low) + number * _exact(step) for number in range(count)]
        return tuple(map(int if self.whole is not None else float, exact))

    @property
    def distribution(self) -> "BaseDistribution":
        """The values as Optuna describes them."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices is not None:
            return CategoricalDistribution(self.texts)
        if self.whole is not None:
            return IntDistribution(*self.whole, step=int(self.step or 1))
        low, high = self.ends
        return FloatDistribution(low, high, log=self.log is not None, step=self.step)


def _exact(number: float) -> Decimal:
    return Decimal(str(number))


def _text(value: Any) -> str:
    """Return a YAML value on one line, as --set takes it. Raises ValueError if it cannot."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).splitlines()[0]
    try:
        is_whole = parse_yaml(text) == value
    except BadYaml:
        is_whole = False
    if not is_whole:
        raise ValueError("a choice must fit on one line")
    return text


@dataclass(frozen=True)
class Space:
    """The keys of a sweep with their values, in the order of the file."""

    path: Path
    parameters: Mapping[str, Parameter]

    def combinations(self) -> list[dict[str, Value]]:
        """Return all combinations of the values, the last key varying fastest.

        Raises InputError if a key is an interval without a step, or if there are too many.
        """
        values = {key: parameter.values for key, parameter in self.parameters.items()}
        for key, each in values.items():
            if each is None:
                raise InputError(f"{self.path}: {key}: --grid needs choices, or whole or range with a larger step")
        product = itertools.product(*(each or () for each in values.values()))
        found = list(itertools.islice(product, MOST_COMBINATIONS + 1))
        if len(found) > MOST_COMBINATIONS:
            raise InputError(
                f"{self.path}: more than {MOST_COMBINATIONS} combinations; give fewer values, or no --grid"
            )
        return [dict(zip(values, combination, strict=True)) for combination in found]

    def plain(self) -> dict[str, dict[str, Any]]:
        """Return the space as plain JSON types."""
        return {key: each.model_dump(mode="json", exclude_none=True) for key, each in self.parameters.items()}


def overrides_of(parameters: Mapping[str, Value]) -> list[str]:
    """Return the values of a trial as `--set` takes them."""
    return [f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}" for key, value in parameters.items()]


def load_space(path: Path) -> Space:
    """Read a space from a YAML file. Raises InputError, naming file and key."""
    try:
        tree = parse_yaml(read_limited(path, 4 * MAX_CHARACTERS, "give a space").decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a space, such as {_EXAMPLE}") from None
    except (BadYaml, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{path}: a space is a mapping of config keys to values, such as {_EXAMPLE}")
    parameters: dict[str, Parameter] = {}
    for key, content in tree.items():
        if not isinstance(key, str) or not isinstance(content, dict):
            raise InputError(f"{path}: {key}: give {{{_EXAMPLES}}}")
        try:
            parameters[key] = Parameter.model_validate(content)
        except pydantic.ValidationError as error:
            raise InputError(f"{path}: {'.'.join([key, *_fault(error)[0]])}: {_fault(error)[1]}") from None
    _check_keys(path, list(parameters))
    return Space(path, parameters)


def _fault(error: pydantic.ValidationError) -> tuple[list[str], str]:
    """Return the place and the reason of the first error."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return place, f"unknown; give one of {_EXAMPLES}"
    return place, str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]


def _check_keys(path: Path, keys: Sequence[str], overridden: Sequence[str] = ()) -> None:
    for key in keys:
        if key == "name":
            raise InputError(f"{path}: name: a sweep names its trials itself; remove it")
        if key.split(".")[0] == "runtime":
            raise InputError(f"{path}: {key}: holds for a process and all its trials; give it with --set")
        within = [other for other in keys if other.startswith(f"{key}.")]
        if within:
            raise InputError(f"{path}: {within[0]}: is a part of {key}, which the space sets too; remove one")
        for other in overridden:
            if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                raise InputError(f"{path}: {key}: --set gives {other}; remove one of them")


def check_space(space: Space, config: Path, overrides: Sequence[str], grid: bool) -> None:
    """Load the config with every choice and both ends of every interval; with `grid`, with every combination.

    Raises InputError for the first that the config refuses.
    """
    load_config(config, overrides)
    _check_keys(space.path, list(space.parameters), [".".join(parse_override(each)[0]) for each in overrides])
    for parameters in space.combinations() if grid else _each_alone(space):
        varied = overrides_of(parameters)
        try:
            load_config(config, [*overrides, *varied])
        except InputError as error:
            reason = getattr(error, "messages", (str(error),))[0]
            raise InputError(f"{space.path}: {', '.join(varied)}: {reason}") from None


def _each_alone(space: Space) -> Iterator[dict[str, Value]]:
    for key, parameter in space.parameters.items():
        for value in parameter.texts or parameter.ends:
            yield {key: value}
