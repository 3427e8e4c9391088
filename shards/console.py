"""What the command lines of both packages share: exit codes, one-line errors, progress bars."""

import contextlib
import os
import sys
import traceback
import unicodedata
from collections.abc import Sequence
from typing import Any, TextIO

import click
from tqdm import tqdm

from shards.errors import InputError, InputErrors, os_fix

EXIT_DONE, EXIT_FAULT, EXIT_USAGE = 0, 1, 2


class PathType(click.Path):
    """A path of a name that every stream can print, on one line."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        """Refuse bytes that are not UTF-8 and control characters."""
        name = os.fsdecode(value)
        try:
            name.encode()
        except UnicodeEncodeError:
            self.fail(f"{value}: this path is not UTF-8; rename it, as with 'convmv -f latin1 -t utf8'", param, context)
        if any(unicodedata.category(character) == "Cc" for character in name):
            self.fail(f"{name!r}: this path holds a line break or another control character; rename it", param, context)
        return super().convert(value, param, context)


def run(command: click.Command, name: str, argv: Sequence[str] | None = None) -> int:
    """Run a click command and return its exit code: 0 done, 2 bad usage or input, 1 internal fault.

    Bad input prints a line on stderr for each of its errors; `--debug`, anywhere on the line, adds the traceback.
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
    except SystemExit:  # what click makes of a closed pipe, and of nothing else here
        return _without_reader()
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
    """Send standard output nowhere: Python would complain at its exit of what it cannot write any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flush(stream: TextIO) -> None:
    """Write out what a stream still holds, if anybody reads it."""
    with contextlib.suppress(OSError, ValueError):
        stream.flush()


def _explain(error: InputError | OSError) -> Sequence[str]:
    if isinstance(error, InputErrors):
        return error.messages
    if isinstance(error, InputError):
        return [str(error)]
    return [f"{error.filename or 'output'}: {error.strerror}; {os_fix(error)}, then run the same command again"]


def printable(text: str) -> str:
    """Return a text in which bytes that are not UTF-8 and characters without a glyph are escaped.

    Names of files may hold both: no stream takes the first, and a terminal obeys the second.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    # Python stands in for a byte that is no UTF-8 with one of these code points.
    byte = ord(character) - 0xDC00
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Print a line of progress; work that takes days does not end because nothing reads it any more."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _forget_output()


def progress(total: int, unit: str, label: str) -> "tqdm[None]":
    """Return a progress bar on stderr; it stays silent where stderr is no terminal."""
    return tqdm(total=total, unit=unit, desc=label, disable=None, dynamic_ncols=True, leave=False)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, as in `1 film` and `8 films`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
