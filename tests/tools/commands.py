"""The commands in README.md, CONTRIBUTING.md, docs/ and the first lines of the scripts, and the table of who runs them.

docs/commands.md is that table. tests/test_commands.py keeps it complete.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs/commands.md"
_PROGRAMS = (
    "pneumo-dist pneumo-shards python python3 bash source torchrun tensorboard (cd",
    "sbatch srun squeue scancel",
    "apt apt-get pip pipx pre-commit git ssh sudo curl wget tar unzip unshare",
    "apptainer singularity buildah docker podman skopeo debootstrap mksquashfs",
)
PROGRAMS = frozenset(name for names in _PROGRAMS for name in names.split())
# Fenced blocks in these languages hold no command lines.
OTHER_LANGUAGES = frozenset({"python", "yaml", "json", "csv", "text"})
PROMPT = re.compile(r"^(\w*\$|#) +")
VARIABLES = re.compile(r"^([A-Z_]+=\S+ )+")
# What the two console scripts are short for.
MODULES = {"pneumo-dist": "pneumo_dist", "pneumo-shards": "shards"}
NO_TEST = ("not run: ", "by hand: ")


@dataclass(frozen=True, order=True)
class Command:
    """A command of a page: on one line, without prompt and comment. Within a sentence it may lack options."""

    page: str
    text: str
    is_inline: bool = False

    def words(self) -> list[str]:
        """Return the words of the shell, without variables that are set in front; `python -m` is kept."""
        return shlex.split(VARIABLES.sub("", self.text))


def pages() -> list[Path]:
    """Return the files whose commands the table lists."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    scripts = sorted(path for folder in ("launch", "slurm") for path in (ROOT / folder).iterdir() if path.is_file())
    return [path for path in (*pages, *scripts) if path != TABLE]


def all_commands() -> list[Command]:
    """Return the commands of all pages, each once per page, in order."""
    return list(dict.fromkeys(command for path in pages() for command in commands_of(path)))


def commands_of(path: Path) -> Iterator[Command]:
    """Yield the commands of a page or of the first comment of a script."""
    page, text = str(path.relative_to(ROOT)), path.read_text()
    code, prose = markdown_parts(text) if path.suffix == ".md" else (head_lines(text), "")
    blocks = [Command(page, line) for line in command_lines(code)]
    known = {command.text for command in blocks}
    yield from blocks
    for span in re.findall(r"`([^`]+)`", prose):
        line = " ".join(span.split())
        if is_command(line) and has_options(line) and line not in known:
            yield Command(page, line, is_inline=True)


def markdown_parts(text: str) -> tuple[list[str], str]:
    """Return the lines of indented and fenced blocks, and the rest."""
    code, prose, language = list[str](), list[str](), None
    for line in text.splitlines():
        if line.startswith("```"):
            language = (line[3:].strip() or "sh") if language is None else None
        elif language is not None:
            code += [] if language in OTHER_LANGUAGES else [line]
        elif line.startswith("    "):
            code.append(line)
            prose.append(line)  # or the continuation of a list
        else:
            prose.append(line)
    return code, "\n".join(prose)


def head_lines(text: str) -> list[str]:
    """Return the indented lines of a script's first comment."""
    lines = text.splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line[1:] for line in lines[1:end] if line.startswith("#   ")]


def command_lines(lines: list[str]) -> Iterator[str]:
    """Yield the commands among lines of code, with continuations joined."""
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    for line in joined.splitlines():
        # What follows two spaces is a comment, with or without a #.
        command = re.split(r"\s{2,}|\s#\s", PROMPT.sub("", line.strip()))[0]
        if is_command(command):
            yield command


def is_command(line: str) -> bool:
    words = VARIABLES.sub("", line).split()
    return len(words) > 1 and words[0] in PROGRAMS


def has_options(line: str) -> bool:
    """Return whether a command in a sentence is one to run, and not the name of a command."""
    words = line.split()
    if VARIABLES.match(line):
        return True
    module = re.match(r"python -m (\S+)", line)
    if module:
        return module[1] not in MODULES.values() or any(word.startswith("-") for word in words[3:])
    return any(word.startswith("-") for word in words[1:]) or words[0] in ("pip", "apt", "apt-get")


@dataclass(frozen=True)
class Row:
    """A line of the table: who runs a command, as `path::test`, or why nobody does."""

    page: str
    text: str
    runner: str

    @property
    def tests(self) -> list[str]:
        """The tests that run the command."""
        return re.findall(r"`([^`]+::[^`]+)`", self.runner)

    def markdown(self) -> str:
        """Return the line of the table."""
        return f"| {self.page} | `{escaped(self.text)}` | {self.runner} |"


def escaped(text: str) -> str:
    return text.replace("|", r"\|")


def rows() -> list[Row]:
    """Return the lines of the table."""
    found = re.findall(r"^\| (\S+\.\S+|slurm/\S+) \| `(.+?)` \| (.+) \|$", TABLE.read_text(), re.MULTILINE)
    return [Row(page, text.replace(r"\|", "|"), runner) for page, text, runner in found]


def missing_test(name: str) -> str | None:
    """Return what is wrong with `path::test` or `path::test[case]`, or None."""
    file, _, test = name.partition("::")
    function, bracket, _ = test.partition("[")
    path = ROOT / file
    if not path.is_file():
        return f"{file} does not exist"
    defined = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == function and function.startswith("test_")
    ]
    if not defined:
        return f"{file} has no {function}"
    decorators = " ".join(ast.unparse(each) for each in defined[0].decorator_list)
    return f"{name} is not parametrised" if bracket and "parametrize" not in decorators else None
