"""What a check of doctor is to say."""

from pneumo_dist.doctor.findings import Finding, Status


def only(findings: list[Finding], status: Status, *words: str) -> None:
    """Check that there is one finding, that it has this status, and that it says these words."""
    (found,) = findings
    assert found.status is status, found
    for word in words:
        assert word in f"{found.found} -> {found.mend}"
