"""The commands of docs/tutorial.md run as they are written there, but for fewer epochs."""

import json
import os
import re
import subprocess
from pathlib import Path

import cv2
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def commands() -> list[str]:
    text = (ROOT / "docs/tutorial.md").read_text()
    found = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    # The environment of the tests is set up already.
    assert found[:2] == ["bash launch/setup.sh", "source .venv/bin/activate"]
    return found[2:]


def test_tutorial_leads_from_pictures_to_a_report_and_masks(tmp_path: Path) -> None:
    for command in commands():
        # In a folder of its own, not in the project's.
        line = re.sub(r"\bmy(?=/| |$)", str(tmp_path / "my"), command)
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        config = tmp_path / "my/first.yaml"
        if config.exists():
            config.write_text(config.read_text().replace("epochs: 30", "epochs: 1"))
    assert "epochs: 1" in config.read_text()
    for name in ("films.png", "runs/first/report.html", "runs/first/overlays.png", "first.bundle"):
        assert (tmp_path / "my" / name).stat().st_size > 1000, name
    results = tmp_path / "my/results"
    findings = [json.loads(path.read_text()) for path in results.glob("*.findings.json")]
    assert sorted(each["film"] for each in findings) == sorted(path.name for path in (tmp_path / "my/images").iterdir())
    for each in findings:
        mask = cv2.imread(str(results / each["files"]["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask is not None and mask.shape == (256, 256) and int((mask > 0).sum()) == each["area_px"]
