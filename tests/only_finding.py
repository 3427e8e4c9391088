"""An assertion on the findings of a check."""

from pneumo_dist.doctor.findings import Finding, Status


def only(findings: list[Finding], status: Status, *words: str) -> None:
    """Assert that there is exactly one finding, with this status and these words in its message and fix."""
    (finding,) = findings
    assert finding.status is status, finding
    for word in words:
        assert word in f"{finding.message} -> {finding.fix}"
