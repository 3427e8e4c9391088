"""The keys of a config, taken from the models: as rows of docs/config.md, and as a JSON schema for editors."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.config.schema import LARGEST, Schema, Unit, keys_of_schema, nested_schema
from pneumo_dist.config.shipped import shipped_configs
from pneumo_dist.config.stage import StageConfig

Json = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of a config.

    Attributes:
        name: Its dotted name. Keys of a stage have no prefix, as they may also be written at the top of the file.
        type: Its type and bounds, in words.
        default: Its default in YAML; empty if it must be given.
        unit: The unit of a number; empty without one.
        meaning: Its description.
    """

    name: str
    type: str
    default: str
    unit: str
    meaning: str


def keys_of(model: type[Schema], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a model and of the models in it, in the order of the file. Lists of models are not entered."""
    for name, field in zip(keys_of_schema(model), model.model_fields.values(), strict=True):
        nested = nested_schema(field)
        default = "" if field.is_required() else yaml_value(field.get_default(call_default_factory=True))
        meaning = " ".join((field.description or "").split())
        if nested is None:
            unit = next(_units(field.annotation, field.metadata), "")
            yield Key(prefix + name, type_in_words(field), default, unit, meaning)
            continue
        if type(None) in get_args(field.annotation):
            yield Key(prefix + name, "mapping, or null", default, "", meaning)
        yield from keys_of(nested, f"{prefix}{name}.")


def _units(annotation: Any, metadata: Sequence[Any]) -> Iterator[str]:
    yield from (each.name for each in metadata if isinstance(each, Unit))
    for each in get_args(annotation):
        yield from _units(each, getattr(each, "__metadata__", ()))


def type_in_words(field: FieldInfo) -> str:
    """Return a field's type in words, such as `whole number, 1 to 4096, or null`."""
    return _in_words(field.annotation, field.metadata)


def _in_words(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _in_words(annotation.__origin__, [*annotation.__metadata__, *metadata])
    if arguments and type(None) in arguments:
        others = [each for each in arguments if each is not type(None)]
        return ", or ".join([*(_in_words(each, metadata) for each in others), "null"])
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list, each: {_in_words(arguments[0], [])}"
        return f"list of {len(arguments)}, each: {_in_words(arguments[0], [])}"
    if arguments and origin is not None and all(isinstance(each, str) for each in arguments):
        return " / ".join(arguments)
    if arguments:
        return ", or ".join(_in_words(each, []) for each in arguments)
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation.__name__.removesuffix("Config").lower()
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    return words.get(annotation, str(annotation)) + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    """Return the bounds of a number as text."""
    found: dict[str, str] = {}
    for each in _flat(metadata):
        for name in ("ge", "gt", "le", "lt", "multiple_of"):
            value = getattr(each, name, None)
            # The largest bounds only catch typing errors.
            if value is not None and value < LARGEST:
                found[name] = str(value) if isinstance(value, int) else f"{value:g}"
    low = f"from {found['ge']}" if "ge" in found else f"above {found['gt']}" if "gt" in found else ""
    high = f"to {found['le']}" if "le" in found else f"below {found['lt']}" if "lt" in found else ""
    multiple = f"multiple of {found['multiple_of']}" if "multiple_of" in found else ""
    return "".join(f", {part}" for part in (" ".join(filter(None, (low, high))), multiple) if part)


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from each.metadata
        else:
            yield each


def yaml_value(value: Any) -> str:
    """Return a default as it is written in YAML."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple() | list():
            return f"[{', '.join(map(yaml_value, value))}]"
        case _:
            return str(value)


def set_by(keys: Mapping[str, Key]) -> dict[str, list[str]]:
    """Return, for each key, the shipped experiments that give it another value than its default."""
    found: dict[str, list[str]] = {name: [] for name in keys}
    for config, path in shipped_configs().items():
        if path.parent.name == "ensembles" or config == "base":
            continue
        experiment = load_config(path).experiment
        whole = experiment.model_dump(exclude={"stages"})
        stages = [stage.model_dump() for stage in experiment.stages]
        for name, key in keys.items():
            values = [_value(tree, name) for tree in (whole, *stages)]
            if key.default and any(value is not _MISSING and yaml_value(value) != key.default for value in values):
                found[name].append(config)
    return found


_MISSING = object()


def _value(tree: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return _MISSING
        tree = tree[part]
    return tree


def json_schema() -> Json:
    """Return the JSON schema of a config file: an ensemble if it has a key that only ensembles have, or an experiment.

    A file may leave out what its `base` has. An experiment may have a stage's keys at its top, and may change the
    stages of its base by their names.
    """
    experiment, ensemble = Experiment.model_json_schema(), EnsembleConfig.model_json_schema()
    shared = {**ensemble.pop("$defs", {}), **experiment.pop("$defs")}
    change = copy.deepcopy(shared["StageConfig"])
    del change["required"], change["properties"]["name"]
    shared["StageChange"] = change
    base = {"type": "string", "description": "A config in the same folder whose values are the defaults here."}
    experiment["properties"] = {"base": base, **change["properties"], **experiment["properties"]}
    only = sorted(ensemble["properties"].keys() - experiment["properties"].keys())
    ensemble["properties"] = {"base": base, **ensemble["properties"]}
    ensemble["anyOf"] = [{"required": ["base"]}, {"required": ensemble.pop("required")}]
    stages = experiment["properties"]["stages"]
    changes = {"type": "object", "additionalProperties": {"$ref": "#/$defs/StageChange"}}
    experiment["properties"]["stages"] = {"anyOf": [stages, changes], "description": stages.get("description", "")}
    del experiment["required"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A config of pneumo_dist",
        "if": {"anyOf": [{"required": [key]} for key in only]},
        "then": ensemble,
        "else": experiment,
        "$defs": shared,
    }


def markdown() -> str:
    """Return docs/config.md."""
    stage, whole = {key.name: key for key in keys_of(StageConfig)}, {key.name: key for key in keys_of(Experiment)}
    ensemble, member = ({key.name: key for key in keys_of(model)} for model in (EnsembleConfig, MemberConfig))
    users = set_by({**whole, **stage})
    sections = [
        ("An experiment", "These keys are at the top of the file.", whole, users),
        ("A stage", "These keys are in a stage, or at the top of the file for all stages.", stage, users),
        ("An ensemble", "A file with `members` is an ensemble ([inference.md](inference.md)).", ensemble, {}),
        ("A member", "`members` is a list of these.", member, {}),
    ]
    lines = [_HEAD]
    for title, text, keys, names in sections:
        lines += [f"## {title}", "", text, "", *_table(keys, names), ""]
    return "\n".join(lines)


_HEAD = """# Config files

This page is generated from the models in `pneumo_dist/config/`. `python -m pneumo_dist config --markdown` prints it.

    pneumo-dist config --schema > pneumo.schema.json

writes a JSON schema, with which an editor completes and checks the keys. With the YAML extension of VS Code, for
example, write this into the first line of a config:

    # yaml-language-server: $schema=pneumo.schema.json

`base: FILE` takes the values of another file in the same folder. `--set KEY=VALUE` overrides a key:
`--set optim.lr=1e-4` in all stages, `--set stages.main.optim.lr=1e-4` in one. The last column lists the shipped
experiments whose value is not the default.
"""


def _table(keys: Mapping[str, Key], users: Mapping[str, list[str]]) -> list[str]:
    rows = ["| key | type | default | unit | meaning | set by |", "| --- | --- | --- | --- | --- | --- |"]
    for key in keys.values():
        names = ", ".join(users.get(key.name, []))
        cells = (f"`{key.name}`", key.type, f"`{key.default}`" if key.default else "", key.unit, key.meaning, names)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return rows
