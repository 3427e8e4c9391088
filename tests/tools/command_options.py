"""What is wrong with the options of a documented command, found with the real parsers and without running it."""

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
from tools.commands import MODULES, ROOT, Command

from pneumo_dist.cli.app import app as pneumo_dist
from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.reference import keys_of
from pneumo_dist.config.stage import StageConfig
from shards.__main__ import app as shards

# A word that stands for another one.
PLACEHOLDER = re.compile(r"…|[A-Z][A-Z_0-9]*|KEY=VALUE")
PARSERS = {"pneumo_dist": pneumo_dist, "shards": shards}


def problems(command: Command) -> list[str]:
    """Return a line for each unknown option, missing option, wrong value, missing script or unknown config key."""
    words = command.words()
    words = words[: next((number for number, word in enumerate(words) if word in ("&&", "|", ">")), len(words))]
    words = [word.strip("[]") for word in words]
    if words[0] in MODULES:
        return _of_parser(MODULES[words[0]], words[1:], not command.is_inline)
    for number, word in enumerate(words):
        if words[number - 1 : number] == ["-m"] and word in PARSERS:
            return _of_parser(word, words[number + 1 :], not command.is_inline)
        if words[number - 1 : number] == ["-m"] and word.startswith(("benchmarks.", "tests.")):
            return _of_module(word, words[number + 1 :])
        if word.startswith(("launch/", "slurm/", ".ci/")):
            return _of_script(word, words[number + 1 :])
    return []


def _of_parser(program: str, words: list[str], is_whole: bool) -> list[str]:
    """Parse the words after `pneumo-dist` or `pneumo-shards`. Only whole commands need their required options."""
    name, *rest = words
    command = PARSERS[program].commands.get(name)
    if command is None:
        return [] if name == "…" else [f"no command {name}"]
    context = click.Context(command)
    try:
        values, left, _ = command.make_parser(context).parse_args(list(rest))
    except click.UsageError as error:
        return [error.format_message()]
    found = [f"{word}: not an option or argument" for word in left if word != "…"]
    for parameter in command.params:
        value = values.get(parameter.name)
        if value is None or value == ():
            if parameter.required and is_whole and "…" not in rest:
                found.append(f"{name} needs {parameter.opts[0]}")
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, str) and not PLACEHOLDER.fullmatch(each):
                try:
                    parameter.type.convert(each, parameter, context)
                except click.UsageError as error:
                    found.append(error.format_message())
                if parameter.opts == ["--set"]:
                    found += _unknown_key(each.partition("=")[0])
    return found


@cache
def _keys() -> frozenset[str]:
    """Return the keys of experiments, of their stages and of ensembles."""
    return frozenset(key.name for model in (Experiment, StageConfig, EnsembleConfig) for key in keys_of(model))


def _unknown_key(key: str) -> list[str]:
    name = re.sub(r"^stages\.[^.]+\.", "", key)
    return [] if name in _keys() else [f"--set {key}: no such config key"]


def _of_module(module: str, words: list[str]) -> list[str]:
    """Look for the options in the source of a module with argparse."""
    path = ROOT / module.replace(".", "/")
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if not source.is_file():
        return [f"{module}: no such module"]
    text = source.read_text()
    if "parser_of(" in text:  # its parser begins with these
        text += (ROOT / "benchmarks/common.py").read_text()
    return [f"{module} has no {word}" for word in words if word.startswith("--") and f'"{word}"' not in text]


def _of_script(script: str, words: list[str]) -> list[str]:
    """Look for the options among the cases of a script. What it passes on goes to the parser that gets it."""
    path = ROOT / script
    if not path.is_file():
        return [f"{script}: no such script"]
    if "(the" in words or script == "launch/test.sh":  # the same arguments; those of pytest
        return []
    if script == "slurm/prepare.sbatch":
        return _of_parser("shards", ["build", *words], is_whole=True)
    end = words.index("--") if "--" in words else len(words)
    own, build = words[:end], words[end + 1 :]
    known = _cases(path)
    if script == "slurm/predict.sbatch":
        known |= _cases(ROOT / "launch/predict.sh")
    if script in ("launch/train.sh", "slurm/train_folds.sbatch"):
        known |= {option for each in pneumo_dist.commands["train"].params for option in each.opts}
    if script == "slurm/sweep.sbatch":
        known |= {option for each in pneumo_dist.commands["sweep"].params for option in each.opts}
    found = [f"{script} has no {word}" for word in own if word.startswith("--") and word not in known]
    for option, value in pairwise(own):
        if option == "--config":
            found += _of_parser("pneumo_dist", ["train", option, value], is_whole=False)
        if option == "--set" and not PLACEHOLDER.fullmatch(value):
            found += _unknown_key(value.partition("=")[0])
    return found + (_of_parser("shards", ["build", *build, "--out", "OUT"], is_whole=True) if build else [])


def _cases(path: Path) -> set[str]:
    """Return the options that a script knows: the patterns of its `case`s and comparisons."""
    text = path.read_text()
    labels = re.findall(r"^\s+(-[\w-]+(?: \| -[\w-]+)*)\)", text, re.MULTILINE)
    compared = re.findall(r"== (--[\w-]+)", text)
    return {option for label in labels for option in label.split(" | ")} | set(compared)
