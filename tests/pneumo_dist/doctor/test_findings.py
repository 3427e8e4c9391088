"""Findings, and their reports as text and as JSON."""

import json
import warnings

import click
import pytest

from pneumo_dist.doctor.findings import (
    Finding,
    Status,
    error,
    from_message,
    json_report,
    lines_of,
    ok,
    readable_size,
    run_check,
    run_checks,
    text_report,
    warning,
    would_fail,
)
from shards.errors import InputError, InputErrors

FINDINGS = [ok("torch", "2.15"), warning("clock", "slow", "set it"), error("GPU", "too old", "use another")]


def test_text_has_each_finding_with_its_fix_below() -> None:
    lines = click.unstyle(text_report("doctor on n0", FINDINGS, ["shards"])).splitlines()
    assert [line.split() for line in lines] == [
        ["doctor", "on", "n0"],
        ["ok", "torch", "2.15"],
        ["warning", "clock", "slow"],
        ["->", "set", "it"],
        ["error", "GPU", "too", "old"],
        ["->", "use", "another"],
        ["not", "checked:", "shards"],
        ["1", "ok,", "1", "warning,", "1", "error:", "training", "would", "fail", "here"],
    ]


def test_only_an_error_fails_training() -> None:
    assert not would_fail(FINDINGS[:2]) and would_fail(FINDINGS)
    report = text_report("", FINDINGS[:2], [])
    assert report.endswith("1 ok, 1 warning, 0 errors: training would run here") and "not checked" not in report


def test_json_is_one_line_with_every_field() -> None:
    line = json_report("n0", 2, 4, FINDINGS)
    assert "\n" not in line
    report = json.loads(line)
    assert (report["host"], report["nodes"], report["ranks"], report["would_fail"]) == ("n0", 2, 4, True)
    assert report["findings"][2] == {"check": "GPU", "status": "error", "found": "too old", "mend": "use another"}


def test_lines_are_distinct_findings_of_one_status() -> None:
    assert lines_of([*FINDINGS, *FINDINGS], Status.ERROR) == ["too old; use another"]


def test_message_of_several_lines_becomes_one() -> None:
    assert error("GPU", "CUDA error:\n  no kernel\timage", "use\nanother").message == "CUDA error: no kernel image"


def test_fix_follows_the_last_semicolon_of_a_message() -> None:
    assert from_message("x", "a; b; c") == error("x", "a; b", "c")
    assert from_message("x", "a", Status.WARNING) == warning("x", "a", "look into it before training")


def test_finding_that_is_not_ok_needs_a_fix() -> None:
    with pytest.raises(AssertionError, match="GPU has no fix"):
        Finding("GPU", Status.ERROR, "too old")


def test_sizes() -> None:
    assert (readable_size(3 << 20), readable_size(3 << 29)) == ("3 MiB", "1.5 GiB")


def test_warnings_of_a_check_follow_its_findings() -> None:
    def check() -> list[Finding]:
        for _ in range(2):
            warnings.warn("one is damaged; using another", stacklevel=1)
        return [ok("x", "fine")]

    assert run_checks([("x", check)]) == [ok("x", "fine"), warning("x", "one is damaged", "using another")]


@pytest.mark.parametrize(
    ("exception", "findings"),
    [
        (InputError("a; b"), [error("x", "a", "b")]),
        (InputErrors(["a; b", "c; d"]), [error("x", "a", "b"), error("x", "c", "d")]),
        (
            PermissionError(13, "Permission denied", "/there"),
            [error("x", "/there: Permission denied", "give another path, or change its permissions")],
        ),
        (
            ZeroDivisionError("by zero"),
            [warning("x", "could not be checked (ZeroDivisionError: by zero)", "check it by hand")],
        ),
    ],
)
def test_exception_of_a_check_becomes_findings(exception: Exception, findings: list[Finding]) -> None:
    def check() -> list[Finding]:
        raise exception

    assert run_check("x", check) == findings
