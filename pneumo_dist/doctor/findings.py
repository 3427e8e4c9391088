"""Findings of checks: how serious each is, how to fix it, and how they are reported."""

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import click

from shards.console import counted
from shards.errors import InputError, InputErrors


class Status(StrEnum):
    """Severity of a finding. With an error, training would fail; with a warning, it may run slowly or by luck."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.ERROR: "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report. Every finding that is not ok has a fix."""

    check: str
    status: Status
    message: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert self.status is Status.OK or self.fix, f"{self.check} has no fix"


# The check of the disk, which dry runs print.
ROOM = "room"
# A check's name, and the function that runs it.
Check = tuple[str, Callable[[], list[Finding]]]


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs no fix."""
    return Finding(check, Status.OK, _one_line(message))


def warning(check: str, message: str, fix: str) -> Finding:
    """Return a finding that training survives."""
    return Finding(check, Status.WARNING, _one_line(message), _one_line(fix))


def error(check: str, message: str, fix: str) -> Finding:
    """Return a finding that training would fail with."""
    return Finding(check, Status.ERROR, _one_line(message), _one_line(fix))


def from_message(check: str, text: str, status: Status = Status.ERROR) -> Finding:
    """Split the message of an error at its last semicolon into a finding's message and fix."""
    message, _, fix = text.rpartition("; ")
    if not message:
        message, fix = text, "look into it before training"
    return Finding(check, status, _one_line(message), _one_line(fix))


def run_checks(checks: Iterable[Check]) -> list[Finding]:
    """Return the findings of several checks, in order."""
    return [finding for name, check in checks for finding in run_check(name, check)]


def run_check(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """Return the findings of a check, including the errors it raises and the warnings it issues.

    An unexpected exception becomes a warning, so that the other checks still run.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            findings = check()
        except InputErrors as exception:
            findings = [from_message(name, message) for message in exception.messages]
        except InputError as exception:
            findings = [from_message(name, str(exception))]
        except OSError as exception:
            fix = "give another path, or change its permissions"
            findings = [error(name, f"{exception.filename}: {exception.strerror}", fix)]
        except Exception as exception:
            reason = f"could not be checked ({type(exception).__name__}: {exception})"
            findings = [warning(name, reason, "check it by hand")]
    messages = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    return [*findings, *(from_message(name, message, Status.WARNING) for message in messages)]


def readable_size(count: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _one_line(text: str) -> str:
    """Join lines, because messages of drivers and libraries may span several."""
    return " ".join(text.split())


def would_fail(findings: Sequence[Finding]) -> bool:
    """Return whether training would fail."""
    return any(finding.status is Status.ERROR for finding in findings)


def lines_of(findings: Sequence[Finding], status: Status) -> list[str]:
    """Return the findings of one status, each as a line of message and fix."""
    return list(dict.fromkeys(f"{each.message}; {each.fix}" for each in findings if each.status is status))


def text_report(heading: str, findings: Sequence[Finding], skipped: Sequence[str]) -> str:
    """Return the report as text. `skipped` names what was not checked."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = [heading]
    for finding in findings:
        label = click.style(f"{finding.status:<7}", fg=_COLOURS[finding.status])
        lines.append(f"  {label}  {finding.check:<{width}}  {finding.message}")
        if finding.fix:
            lines.append(f"  {'':<7}  {'':<{width}}  -> {finding.fix}")
    if skipped:
        lines.append(f"not checked: {', '.join(skipped)}")
    numbers = {status: sum(finding.status is status for finding in findings) for status in Status}
    counts = [counted(numbers[status], str(status)) for status in (Status.WARNING, Status.ERROR)]
    outcome = f"training would {'fail' if would_fail(findings) else 'run'} here"
    lines.append(f"{numbers[Status.OK]} ok, {', '.join(counts)}: {outcome}")
    return "\n".join(lines)


def json_report(host: str, nodes: int, ranks: int, findings: Sequence[Finding]) -> str:
    """Return the report as one line of JSON, so that the reports of several nodes are JSON lines."""
    listed = [
        {"check": each.check, "status": each.status, "found": each.message, "mend": each.fix} for each in findings
    ]
    facts = {"host": host, "nodes": nodes, "ranks": ranks, "would_fail": would_fail(findings)}
    return json.dumps({**facts, "findings": listed})
