"""The report in headless Chromium: on a phone, on a wide screen and in print."""

import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from report_runs import log_epochs, store

from pneumo_dist.inference.report import write_report
from pneumo_dist.monitor import LABEL_COLOUR, PREDICTION_COLOUR
from shards.table import Shards

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE, HEIGHT = 390, 10000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install the package chromium"),
]


@pytest.fixture(scope="module")
def page(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all its parts."""
    runs = tmp_path_factory.mktemp("runs")
    store(films, runs / "exp")
    store(films, runs / "exp", split="holdout", rows=range(7), noise=60)
    store(films, runs / "rival", noise=70)
    log_epochs(runs / "exp")
    return write_report(films, runs, "exp", against="rival").page


def chromium(page: Path, *arguments: str) -> str:
    """Open the page without network, and return what is printed."""
    assert CHROMIUM is not None
    # Chromium is given a profile of its own, and no shared memory, of which containers have little.
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [*arguments, page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def screenshot(page: Path, width: int, height: int) -> np.ndarray:
    """Return the top of the page in a window of that many pixels, BGR."""
    path = page.parent / f"screen-{width}.png"
    chromium(page, f"--screenshot={path}", f"--window-size={width},{height}")
    picture = cv2.imread(str(path))
    assert picture is not None and picture.shape == (height, width, 3)
    return picture


def test_nothing_is_wider_than_a_phone(page: Path) -> None:
    # Chromium's window is at least 500 pixels wide, so a frame stands for the phone. What is wider than the frame
    # reaches into the page's right margin, which else is white.
    frame = page.parent / "phone.html"
    frame.write_text(
        f'<body style="margin:0;background:#00f"><iframe src="{page.name}" scrolling="yes" '
        f'style="border:0;width:{PHONE}px;height:{HEIGHT}px;display:block;background:#fff"></iframe>'
    )
    picture = screenshot(frame, 800, HEIGHT)
    assert (picture[:, PHONE:] == (255, 0, 0)).all(), "the frame is the phone's width"
    own = picture[:, :PHONE]
    assert (own[:4000].reshape(4000, -1).std(1) > 3).mean() > 0.4, "most of the page is blank"
    margin = own[:, -5:]
    assert (margin == 255).all(), "something reaches past the right margin"


def test_browser_reads_the_whole_page(page: Path) -> None:
    text = chromium(page, "--dump-dom")
    for heading in ("Headline", "Folds", "Learning curves", "Subgroups", "Films", "Against rival", "Environment"):
        assert f">{heading}</h2>" in text
    assert text.count("<img") == page.read_text().count("<img") >= 10


def test_wide_screen_shows_films_and_plots(page: Path) -> None:
    picture = screenshot(page, 1200, 9000)
    rows = (picture.reshape(9000, -1).std(1) > 3).mean()
    assert rows > 0.4, "most of the page is blank"
    for colour in (LABEL_COLOUR, PREDICTION_COLOUR):
        near = np.abs(picture.astype(int) - colour[::-1]).max(-1) < 40
        assert near.sum() > 100, "no outlines are to be seen"


def test_print_has_pages(page: Path) -> None:
    path = page.parent / "report.pdf"
    chromium(page, f"--print-to-pdf={path}", "--no-pdf-header-footer")
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 3 <= pages <= 20
