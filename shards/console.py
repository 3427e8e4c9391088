"""Exit codes, one-line errors and progress bars for the command lines of both packages."""

import contextlib
import os
import sys
import traceback
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import click
from tqdm import tqdm

from shards.errors import InputError, InputErrors, os_fix

EXIT_DONE, EXIT_FAULT, EXIT_USAGE = 0, 1, 2


class PathType(click.Path):
    """A path whose name every stream can print on one line."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """Refuse control characters and bytes that are not UTF-8."""
        name = os.fsdecode(value)
        try:
            name.encode()
        except UnicodeEncodeError:
            self.fail(f"{value}: this path is not UTF-8; rename it, as with 'convmv -f latin1 -t utf8'", param, context)
        if any(unicodedata.category(character) == "Cc" for character in name):
            self.fail(f"{name!r}: this path contains a line break or control character; rename it", param, context)
        return super().convert(value, param, context)


def program(script: str, module: str) -> str:
    """Return how this program was started: the name of its console script, or `python -m` and its module."""
    return script if Path(sys.argv[0]).name == script else f"python -m {module}"


def run(command: click.Command, name: str, argv: Sequence[str] | None = None) -> int:
    """Run a click command and return its exit code: 0 for success, 2 for bad usage or input, 1 if nobody reads stdout.

    Each error in the input is one line on stderr. `--debug`, anywhere on the command line, adds the traceback. All
    other exceptions are raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as usage:
        usage.show()
        return EXIT_USAGE
    except click.ClickException as usage:
        print(f"error: {printable(' '.join(usage.format_message().split()))} (see {name} --help)", file=sys.stderr)
        return EXIT_USAGE
    except BrokenPipeError:
        return _without_reader()
    except SystemExit as end:  # click exits by itself only after a shell completion or when a pipe is closed
        return EXIT_DONE if end.code == EXIT_DONE else _without_reader()
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and os_fix(error) is None:
            raise
        if debug:
            traceback.print_exc()
        for message in _explain(error):
            print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else EXIT_DONE


def _without_reader() -> int:
    _forget_output()
    print("error: nothing reads the output any more (a closed pipe); run the same command again", file=sys.stderr)
    return EXIT_FAULT


def _forget_output() -> None:
    """Discard standard output; otherwise Python complains at exit that it cannot flush it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush(stream: TextIO) -> None:
    """Flush a stream, if anything still reads it."""
    with contextlib.suppress(OSError, ValueError):
        stream.flush()


def _explain(error: InputError | OSError) -> Sequence[str]:
    if isinstance(error, InputErrors):
        return error.messages
    if isinstance(error, InputError):
        return [str(error)]
    return [f"{error.filename or 'output'}: {error.strerror}; {os_fix(error)}, then run the same command again"]


def printable(text: str) -> str:
    """Return a text with unprintable characters and bytes that are not UTF-8 escaped.

    File names may contain both. No stream accepts such bytes, and a terminal executes control characters.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def is_one_line(text: str) -> bool:
    """Return whether a text has no line break and no control character, which a terminal would execute."""
    return text.isprintable() or not any(unicodedata.category(sign) in ("Cc", "Zl", "Zp") for sign in text)


def _escaped(character: str) -> str:
    # Python decodes a byte that is not UTF-8 as one of these code points.
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Print a line of progress. A closed pipe does not end the work."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _forget_output()


def warn(text: str) -> None:
    """Print a warning as one line on stderr. Names in it may come from strangers' files."""
    print(f"warning: {printable(text)}", file=sys.stderr)


def progress(total: int, unit: str, label: str) -> "tqdm[None]":
    """Return a progress bar on stderr. It is silent unless stderr is a terminal."""
    return tqdm(total=total, unit=unit, desc=label, disable=None, dynamic_ncols=True, leave=False)


def beside_bars(text: str, stream: TextIO) -> None:
    """Print a line above the progress bars that a terminal shows."""
    tqdm.write(text, file=stream)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 film`, `8 films`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
