"""The report: what it says of findings, in text and as JSON."""

import json

import click
import pytest

from pneumo_dist.doctor.findings import (
    Finding,
    Status,
    error,
    guarded,
    json_report,
    ok,
    text_report,
    warning,
    would_fail,
)

FINDINGS = [ok("torch", "2.15"), warning("clock", "slow", "set it"), error("GPU", "too old", "take another")]


def test_text_has_each_finding_with_its_mend_below() -> None:
    lines = click.unstyle(text_report("doctor on n0", FINDINGS, ["shards"])).splitlines()
    assert [line.split() for line in lines] == [
        ["doctor", "on", "n0"],
        ["ok", "torch", "2.15"],
        ["warning", "clock", "slow"],
        ["->", "set", "it"],
        ["error", "GPU", "too", "old"],
        ["->", "take", "another"],
        ["not", "looked", "at:", "shards"],
        ["1", "ok,", "1", "to", "look", "at,", "1", "wrong:", "training", "would", "fail", "here"],
    ]


def test_only_an_error_fails_training() -> None:
    assert not would_fail(FINDINGS[:2]) and would_fail(FINDINGS)
    assert "training would run here" in text_report("", FINDINGS[:2], [])
    assert "not looked at" not in text_report("", FINDINGS, [])


def test_json_is_one_line_with_every_field() -> None:
    line = json_report("n0", 2, 4, FINDINGS)
    assert "\n" not in line
    report = json.loads(line)
    assert (report["host"], report["nodes"], report["ranks"], report["would_fail"]) == ("n0", 2, 4, True)
    assert report["findings"][2] == {"check": "GPU", "status": "error", "found": "too old", "mend": "take another"}


def test_message_of_several_lines_becomes_one() -> None:
    assert error("GPU", "CUDA error:\n  no kernel\timage", "take\nanother").found == "CUDA error: no kernel image"


def test_what_is_not_ok_has_a_mend() -> None:
    with pytest.raises(AssertionError, match="GPU has no mend"):
        Finding("GPU", Status.ERROR, "too old")


def test_check_that_fails_itself_is_a_warning_and_no_traceback() -> None:
    def look() -> list[Finding]:
        raise ZeroDivisionError("by zero")

    (found,) = guarded("CPUs", look)
    assert found.status is Status.WARNING and found.check == "CPUs"
    assert found.found == "could not be checked (ZeroDivisionError: by zero)"
