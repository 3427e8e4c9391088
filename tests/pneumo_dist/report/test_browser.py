"""The report in headless Chromium: on a phone, on a wide screen and in print, with and without JavaScript."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
from report_runs import Page, log_epochs, store

from pneumo_dist.report.page import ReportOptions, write_report
from shards.dataset.table import Shards
from shards.palette import LABEL, PREDICTION

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PDFTOTEXT = shutil.which("pdftotext")
PHONE, HEIGHT = 390, 16000
# The setting of a reader who turns JavaScript off. With --blink-settings=scriptEnabled=false instead, Chromium cannot
# take screenshots, as its own page for them needs scripts.
NO_SCRIPTS = {"profile": {"default_content_setting_values": {"javascript": 2}}}
HEADINGS = (
    "Headline",
    "Folds",
    "Learning curves",
    "Subgroups",
    "Rules for masks",
    "Films",
    "Against rival",
    "Environment",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install the package chromium"),
]


@pytest.fixture(scope="module")
def page(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all its sections."""
    runs = tmp_path_factory.mktemp("runs")
    store(films, runs / "exp", with_classes=True)
    store(films, runs / "exp", split="holdout", rows=range(7), noise=60, with_classes=True)
    store(films, runs / "rival", noise=70)
    log_epochs(runs / "exp")
    return write_report(films, runs, "exp", ReportOptions(against="rival")).page


def chromium(page: Path, *arguments: str, scripts: bool = True) -> str:
    """Open the page without network, and without JavaScript unless `scripts` is set; return the output."""
    assert CHROMIUM is not None
    # Chromium gets a separate profile and no shared memory, which is scarce in containers.
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    profile = page.parent / ("profile" if scripts else "profile-without-scripts")
    if not scripts and not profile.exists():
        (profile / "Default").mkdir(parents=True)
        (profile / "Default/Preferences").write_text(json.dumps(NO_SCRIPTS))
    command += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [*arguments, page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def screenshot(page: Path, width: int, height: int, scripts: bool = True) -> np.ndarray:
    """Return the top of the page in a window of this size, BGR (height, width, 3)."""
    path = page.parent / f"{page.stem}-{width}-{scripts}.png"
    chromium(page, f"--screenshot={path}", f"--window-size={width},{height}", scripts=scripts)
    picture = cv2.imread(str(path))
    assert picture is not None and picture.shape == (height, width, 3)
    return picture


def phone_view(page: Path, scripts: bool = True) -> np.ndarray:
    """Return the page at the width of a phone, BGR (HEIGHT, PHONE, 3)."""
    # Chromium's window is at least 500 pixels wide, so the page is shown in a frame.
    frame = page.parent / f"phone-{page.stem}.html"
    frame.write_text(
        f'<body style="margin:0;background:#00f"><iframe src="{page.name}" scrolling="yes" '
        f'style="border:0;width:{PHONE}px;height:{HEIGHT}px;display:block;background:#fff"></iframe>'
    )
    picture = screenshot(frame, 800, HEIGHT, scripts)
    assert (picture[:, PHONE:] == (255, 0, 0)).all(), "the frame is the phone's width"
    return picture[:, :PHONE]


@pytest.fixture(scope="module")
def wiped(page: Path) -> Path:
    """The page with a script that erases it, so that it is only visible without scripts."""
    path = page.parent / "wiped.html"
    path.write_text(page.read_text().replace("</body>", '<script>document.body.innerHTML = "";</script></body>'))
    return path


def test_nothing_is_wider_than_a_phone(page: Path) -> None:
    own = phone_view(page)
    assert (own[:4000].reshape(4000, -1).std(1) > 3).mean() > 0.4, "most of the page is blank"
    # Anything wider than the frame reaches into the right margin of the page, which is white otherwise.
    margin = own[:, -5:]
    assert (margin == 255).all(), "the page is wider than the phone"


def test_phone_shows_the_same_without_scripts(page: Path, wiped: Path) -> None:
    plain = phone_view(page)
    assert (phone_view(wiped) == 255).all(), "the script runs where scripts may run"
    assert (phone_view(wiped, scripts=False) == plain).all()
    assert (phone_view(page, scripts=False) == plain).all()


def test_browser_reads_the_whole_page(page: Path) -> None:
    text = chromium(page, "--dump-dom")
    for heading in HEADINGS:
        assert f">{heading}</h2>" in text
    assert text.count("<img") == page.read_text().count("<img") >= 10


@pytest.mark.parametrize("scripts", [True, False])
def test_wide_screen_shows_films_and_plots(page: Path, scripts: bool) -> None:
    picture = screenshot(page, 1200, 12000, scripts)
    rows = (picture.reshape(12000, -1).std(1) > 3).mean()
    assert rows > 0.4, "most of the page is blank"
    for colour in (LABEL, PREDICTION):
        # A picture in Chromium is smaller than its file, so outlines are mixed with the film.
        hue = (picture[..., 0].astype(int) - picture[..., 2]) * np.sign(colour[2] - colour[0])
        assert (hue > 40).sum() > 100, "no outlines are visible"


def test_a_wide_table_shows_that_it_scrolls(tmp_path: Path, page: Path) -> None:
    """On a phone, a table that goes on has a shadow at its right edge, and one that ends has none."""
    text = page.read_text()
    head = text[: text.index("<body>")]
    cells = {name: "<td>figure</td>" * count for name, count in (("wide", 30), ("narrow", 2))}
    edges = {}
    for name, row in cells.items():
        table = f'<div class="scroll"><table><tbody>{f"<tr>{row}</tr>" * 12}</tbody></table></div>'
        (tmp_path / f"{name}.html").write_text(f"{head}<body>{table}</body></html>")
        picture = phone_view(tmp_path / f"{name}.html").astype(int)
        margin = int((picture[100] == 255).all(-1)[::-1].argmin()) if name == "wide" else 0
        edges[name] = picture[60:260, PHONE - margin - 6 : PHONE - margin].mean()
    assert edges["narrow"] == 255 and edges["wide"] < 225


@pytest.fixture(scope="module")
def printed(page: Path, wiped: Path) -> dict[str, Path]:
    """The printed page, and the wiped page printed without scripts."""
    made = {}
    for name, source, scripts in (("page", page, True), ("wiped", wiped, False)):
        made[name] = page.parent / f"{name}.pdf"
        chromium(source, f"--print-to-pdf={made[name]}", "--no-pdf-header-footer", scripts=scripts)
    return made


@pytest.mark.parametrize("name", ["page", "wiped"])
def test_print_has_pages_and_all_pictures(page: Path, printed: dict[str, Path], name: str) -> None:
    content = printed[name].read_bytes()
    assert content.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", content))
    assert 3 <= pages <= 30
    assert len(re.findall(rb"/Subtype\s*/Image\b", content)) >= page.read_text().count("<img")


@pytest.mark.skipif(PDFTOTEXT is None, reason="no pdftotext here: install the package poppler-utils")
@pytest.mark.parametrize("name", ["page", "wiped"])
def test_print_has_every_heading_row_and_notice(page: Path, printed: dict[str, Path], name: str) -> None:
    assert PDFTOTEXT is not None
    text = subprocess.run([PDFTOTEXT, str(printed[name]), "-"], capture_output=True, text=True, check=True).stdout
    words = " ".join(text.split())
    for heading in HEADINGS:
        assert heading in words
    assert words.count("For research. Not for diagnosis.") == 2
    printed_figures = set(re.findall(r"\d\.\d{3,4}", words))
    figures = {
        figure for row in Page(page.read_text()).rows for cell in row for figure in re.findall(r"\d\.\d{3,4}", cell)
    }
    assert len(figures) > 50 and figures <= printed_figures
