"""Loads experiments from YAML, with inheritance by `base:`, dotted overrides, and errors that name file and key."""

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic
import yaml

from pneumo_dist.config.experiment import OLD_LOADER, Experiment
from pneumo_dist.config.record import without_dropped
from pneumo_dist.config.schema import Schema, keys_of_schema, nested_schema
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.config.yaml_text import MAX_CHARACTERS, BadYaml, parse_yaml
from shards.errors import InputError, InputErrors
from shards.stored import read_limited

STAGE_KEYS = frozenset(StageConfig.model_fields) - {"name"}
OVERRIDE = "--set"

Tree = dict[str, Any]


@dataclass(frozen=True)
class LoadedConfig:
    """A valid experiment, and the origin (a file or --set) of each dotted key that is not a default."""

    experiment: Experiment
    origins: Mapping[str, str]
    path: Path


def load_config(path: Path, overrides: Sequence[str] = (), is_record: bool = False) -> LoadedConfig:
    """Load an experiment. Warns of deprecated values.

    Args:
        path: The YAML file.
        overrides: `dotted.key=value` with the value in YAML. A key of a stage (`optim.lr`) applies to every stage,
            `stages.NAME.optim.lr` to one.
        is_record: Whether the file is the record of a run. Its deprecated values cause no warning, and it has no base.

    Raises:
        InputErrors: One error or several, each naming the file, the key and, for an unknown key, the nearest valid one.
    """
    origins: dict[str, str] = {}
    tree = _read(path, (), origins, is_record)
    stages = tree.pop("stages", None)
    if not isinstance(stages, list) or not all(isinstance(stage, dict) and "name" in stage for stage in stages):
        raise InputError(f"{path}: 'stages' must be a list of mappings, each with a name")
    defaults = {key: tree.pop(key) for key in list(tree) if key in STAGE_KEYS}
    merged = [_merge(defaults, stage) for stage in stages]
    for override in overrides:
        _apply_override(override, tree, merged, origins)
    try:
        experiment = Experiment.model_validate(without_dropped({**tree, "stages": merged}))
    except pydantic.ValidationError as error:
        raise _explain(error, path, merged, origins) from None
    if not is_record and isinstance(tree.get("data"), dict):
        origin = _nearest_origin(["data.loader"], origins) or path
        warn_of_old_loader(tree["data"].get("loader"), f"{origin}: data.loader")
    return LoadedConfig(experiment, origins, path)


def warn_of_old_loader(value: object, where: str) -> None:
    """Warn if a config uses the old name of the torch loader."""
    if value == OLD_LOADER:
        warnings.warn(f"{where}: {OLD_LOADER} is now called torch; write torch", stacklevel=3)


def _read(path: Path, chain: tuple[Path, ...], origins: dict[str, str], is_record: bool = False) -> Tree:
    try:
        resolved = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # circular links; a NUL in a name
        raise InputError(f"{path}: unreadable ({error})") from None
    if resolved in chain:
        raise InputError(f"{path}: 'base' is circular ({' -> '.join(p.name for p in (*chain, resolved))})")
    try:
        # A character takes up to four bytes.
        tree = parse_yaml(read_limited(path, 4 * MAX_CHARACTERS, "give a config").decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such config{_near_file(path)}") from None
    except BadYaml as error:
        raise InputError(f"{path}: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: a config must be a mapping of keys to values")
    base = tree.pop("base", None)
    inherited: Tree = {}
    if base is not None:
        if is_record:
            raise InputError(f"{path}: has a 'base', which the record of a run never has; restore it from a copy")
        if not isinstance(base, str):
            raise InputError(f"{path}: 'base' must be the name of a YAML file in the same folder")
        inherited = _read(path.parent / base, (*chain, resolved), origins)
    if isinstance(tree.get("stages"), list):
        _forget(origins, "stages")  # a list replaces the base's list
    for key in _leaves(tree):
        origins[key] = str(path)
    if isinstance(tree.get("stages"), dict) and isinstance(inherited.get("stages"), list):
        tree["stages"] = _change_stages(inherited["stages"], tree["stages"], path)
    return _merge(inherited, tree)


def _change_stages(stages: list[Tree], changes: Tree, path: Path) -> list[Tree]:
    """Return the base's stages with the changes that a mapping of stage names makes."""
    names = [stage.get("name") for stage in stages]
    for name, change in changes.items():
        if name not in names or not isinstance(change, dict):
            raise InputError(
                f"{path}: stages.{name}: give changes to a stage of the base: {', '.join(map(str, names))}"
            )
    return [_merge(stage, changes.get(str(stage.get("name")), {})) for stage in stages]


def _forget(origins: dict[str, str], key: str) -> None:
    for known in [known for known in origins if known == key or known.startswith(f"{key}.")]:
        del origins[known]


def _near_file(path: Path) -> str:
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; pass the path of one with --config"


def _merge(base: Tree, changes: Tree) -> Tree:
    result = dict(base)
    for key, value in changes.items():
        are_mappings = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merge(result[key], value) if are_mappings else value
    return result


def _leaves(tree: Any, prefix: str = "") -> list[str]:
    if isinstance(tree, dict) and tree:
        return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}{key}.")]
    if prefix == "stages." and isinstance(tree, list):
        named = [stage for stage in tree if isinstance(stage, dict)]
        return [leaf for stage in named for leaf in _leaves(stage, f"stages.{stage.get('name')}.")]
    return [prefix.rstrip(".")]


def read_tree(path: Path, is_record: bool = False) -> Tree:
    """Return a config's mapping merged with its bases; the record of a run has none.

    Raises InputError if the file is missing or not a mapping.
    """
    return _read(path, (), {}, is_record)


def parse_override(override: str) -> tuple[list[str], Any]:
    """Return the parts of the dotted key and the value of `key=value`. Raises InputError for any other text."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"{OVERRIDE} {override}: write key=value, e.g. optim.lr=1e-4")
    try:
        return parts, _number_or(parse_yaml(text))
    except BadYaml:
        raise InputError(f"{OVERRIDE} {override}: the value is not valid YAML") from None


def _apply_override(override: str, tree: Tree, stages: list[Tree], origins: dict[str, str]) -> None:
    parts, value = parse_override(override)
    _note_override(origins, ".".join(parts))
    if parts[0] == "stages":
        named = [stage for stage in stages if stage["name"] == (parts[1] if len(parts) > 1 else "")]
        if len(parts) < 3 or not named:
            names = ", ".join(stage["name"] for stage in stages)
            raise InputError(f"{OVERRIDE} {override}: write stages.NAME.key=value with one of the stages {names}")
        put(named[0], parts[2:], value)
    elif parts[0] in STAGE_KEYS:
        for stage in stages:
            _note_override(origins, ".".join(["stages", stage["name"], *parts]))
            put(stage, parts, value)
    else:
        put(tree, parts, value)


def _note_override(origins: dict[str, str], key: str) -> None:
    _forget(origins, key)
    origins[key] = OVERRIDE


def _number_or(value: Any) -> Any:
    """Return a text such as 1e-4, which YAML 1.1 does not read as a number, as the number it means."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def put(tree: Tree, parts: Sequence[str], value: Any) -> None:
    """Set a nested key of a mapping in place. Raises InputError for a key within a list."""
    for part in parts[:-1]:
        inner = tree.get(part)
        if isinstance(inner, list | tuple):
            raise InputError(f"--set {'.'.join(parts)}: {part} is a list; set all of it, or change it in a config")
        # Copied, because stages share the mappings of the defaults.
        tree[part] = dict(inner) if isinstance(inner, dict) else {}
        tree = tree[part]
    tree[parts[-1]] = value


def _explain(
    error: pydantic.ValidationError, path: Path, stages: Sequence[Tree], origins: Mapping[str, str]
) -> InputErrors:
    """Return all errors, each with the file it is in. An error that several stages inherit is reported once."""
    messages = [_explain_one(each, path, stages, origins) for each in in_order(error)]
    return InputErrors(list(dict.fromkeys(messages)))


def _explain_one(error: Any, path: Path, stages: Sequence[Tree], origins: Mapping[str, str]) -> str:
    location = [str(part) for part in error["loc"]]
    inner = location
    if location[:1] == ["stages"] and len(location) > 1:
        location[1] = str(stages[int(location[1])]["name"])
        inner = location[2:]
    key, default = ".".join(location), ".".join(inner)
    file = _nearest_origin([key, default], origins) or str(path)
    shared = _origin_of(default, origins)
    if shared is not None and _origin_of(key, origins) in (None, OVERRIDE):
        file, key = shared, default  # a key that the stages share
    if error["type"] == "extra_forbidden":
        hint = fix_for(location[-1], _valid_names(inner, in_stage=inner is not location))
        return f"{file}: unknown key {key}; {hint}"
    return f"{file}: {key or 'config'}: {error['msg']}"


def in_order(error: pydantic.ValidationError) -> list[Any]:
    """Return the errors to report. Unknown keys come first: one may be the misspelt name of a missing key."""
    errors = error.errors()
    # If items of a tuple are invalid, pydantic also reports that the tuple is too short.
    items = {each["loc"][:end] for each in errors for end in range(1, len(each["loc"]))}
    reported = [each for each in errors if each["type"] != "too_short" or each["loc"] not in items]
    return sorted(reported, key=lambda each: each["type"] != "extra_forbidden")


def fix_for(name: str, valid: Iterable[str]) -> str:
    """Return the fix for an unknown name: the nearest valid one, if any is similar."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"did you mean {near[0]}?" if near else "remove it"


def _origin_of(key: str, origins: Mapping[str, str]) -> str | None:
    """Return the origin of a key, or of a key below it."""
    return next((origin for known, origin in origins.items() if known == key or known.startswith(f"{key}.")), None)


def _nearest_origin(keys: Sequence[str], origins: Mapping[str, str]) -> str | None:
    """Return the origin of the first key that has one, or else of a mapping or list that contains a key."""
    for key in keys:
        origin = _origin_of(key, origins)
        if origin is not None:
            return origin
    for key in keys:
        while "." in key:
            key = key.rpartition(".")[0]
            if key in origins:
                return origins[key]
    return None


def _valid_names(location: Sequence[str], in_stage: bool) -> list[str]:
    schema: type[Schema] = StageConfig if in_stage else Experiment
    for part in location[:-1]:
        field = schema.model_fields.get(part)
        nested = None if field is None else nested_schema(field)
        if nested is None:
            return []
        schema = nested
    return [*keys_of_schema(schema), *(STAGE_KEYS if schema is Experiment else ())]


def dump_resolved(config: LoadedConfig) -> str:
    """Return the resolved experiment as YAML that can be loaded, with the origin of each value as a comment."""
    lines: list[str] = []

    def emit(tree: Mapping[str, Any], prefix: str, indent: str) -> None:
        for key, value in tree.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, dict) and value:
                lines.append(f"{indent}{key}:")
                emit(value, f"{dotted}.", indent + "  ")
            elif dotted == "stages":
                lines.append("stages:")
                for stage in value:
                    start = len(lines)
                    emit(stage, f"stages.{stage['name']}.", "    ")
                    lines[start] = "  - " + lines[start].lstrip()
            else:
                text = yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]
                lines.append(f"{indent}{key}: {text}  # {_origin(dotted, config.origins)}")

    emit(config.experiment.model_dump(mode="json"), "", "")
    return "\n".join(lines) + "\n"


def as_trained(config: LoadedConfig, experiment: Experiment) -> LoadedConfig:
    """Return a config with the settings that finished stages were trained with, and mark these as their origin."""
    origins = dict(config.origins)
    for configured, trained in zip(config.experiment.stages, experiment.stages, strict=True):
        before, after = configured.model_dump(mode="json"), trained.model_dump(mode="json")
        origins |= {
            f"stages.{trained.name}.{key}": "as trained" for key, value in after.items() if value != before[key]
        }
    return replace(config, experiment=experiment, origins=origins)


def _origin(dotted: str, origins: Mapping[str, str]) -> str:
    parts = dotted.split(".")
    default = ".".join(parts[2:]) if parts[0] == "stages" else dotted
    origin = _nearest_origin([dotted, default], origins)
    return Path(origin).name if origin else "default"
