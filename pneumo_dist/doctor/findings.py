"""What a check found, how grave it is, and its mend."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import click


class Status(StrEnum):
    """`error`: training would fail here; `warning`: it would run, slowly or by luck."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


_COLOURS = {Status.OK: "green", Status.WARNING: "yellow", Status.ERROR: "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report; what is not ok has a mend."""

    check: str
    status: Status
    found: str
    mend: str = ""

    def __post_init__(self) -> None:
        assert self.status is Status.OK or self.mend, f"{self.check} has no mend"


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs no mend."""
    return Finding(check, Status.OK, _line(found))


def warning(check: str, found: str, mend: str) -> Finding:
    """Return a finding with which training would run."""
    return Finding(check, Status.WARNING, _line(found), _line(mend))


def error(check: str, found: str, mend: str) -> Finding:
    """Return a finding with which training would fail."""
    return Finding(check, Status.ERROR, _line(found), _line(mend))


def refused(check: str, message: str, status: Status = Status.ERROR) -> Finding:
    """Return a finding from an error's message, whose mend follows its last semicolon."""
    found, _, mend = message.rpartition("; ")
    return Finding(check, status, _line(found or message), _line(mend if found else "look at it before training"))


def size_of(count: int) -> str:
    """Return a number of bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _line(text: str) -> str:
    """Messages of drivers and libraries span lines."""
    return " ".join(text.split())


def guarded(check: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """Return what a check finds; where the check itself fails, that is a finding too, and the others still run."""
    try:
        return look()
    except Exception as fault:
        return [warning(check, f"could not be checked ({type(fault).__name__}: {fault})", "look at it by hand")]


def would_fail(findings: Sequence[Finding]) -> bool:
    """Return whether training would fail here."""
    return any(finding.status is Status.ERROR for finding in findings)


def text_report(heading: str, findings: Sequence[Finding], skipped: Sequence[str]) -> str:
    """Return the report for people; `skipped` names what was not looked at."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = [heading]
    for finding in findings:
        label = click.style(f"{finding.status:<7}", fg=_COLOURS[finding.status])
        lines.append(f"  {label}  {finding.check:<{width}}  {finding.found}")
        if finding.mend:
            lines.append(f"  {'':<7}  {'':<{width}}  -> {finding.mend}")
    if skipped:
        lines.append(f"not looked at: {', '.join(skipped)}")
    counts = ", ".join(
        f"{sum(finding.status is status for finding in findings)} {name}"
        for status, name in ((Status.OK, "ok"), (Status.WARNING, "to look at"), (Status.ERROR, "wrong"))
    )
    lines.append(f"{counts}: training would {'fail' if would_fail(findings) else 'run'} here")
    return "\n".join(lines)


def json_report(host: str, nodes: int, ranks: int, findings: Sequence[Finding]) -> str:
    """Return the report as one line, so that those of many nodes make JSON lines."""
    facts = {"host": host, "nodes": nodes, "ranks": ranks, "would_fail": would_fail(findings)}
    return json.dumps({**facts, "findings": [asdict(finding) for finding in findings]})
