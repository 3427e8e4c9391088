"""Take pictures of what a run shows: its report, a comparison, TensorBoard's table of settings, and its overlays.

    python -m tests.tools.screenshots demo-run/runs --out /tmp/pictures

RUNS holds experiments with a report. Chromium must be installed.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WIDE, PHONE, HEIGHT = 1280, 390, 4000
# Chromium's own windows are at least 500 pixels wide, so the phone is a frame in one.
FRAME = '<body style="margin:0"><iframe src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>'
START_SECONDS, DRAWN_MILLISECONDS = 60.0, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    runs, out = arguments.runs.absolute(), arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for page in sorted(runs.glob("*/report.html")):
        name = page.parent.name
        screenshot(page.as_uri(), out / f"{name}-report.png", WIDE)
        with tempfile.TemporaryDirectory() as folder:
            frame = Path(folder) / "phone.html"
            frame.write_text(FRAME.format(page=page.as_uri(), width=PHONE, height=HEIGHT))
            screenshot(frame.as_uri(), out / f"{name}-phone.png", 500)
        shutil.copy(page.with_name("overlays.png"), out / f"{name}-overlays.png")
    compared = out / "compare.html"
    subprocess.run([sys.executable, "-m", "pneumo_dist", "compare", str(runs), "--html", str(compared)], check=True)
    screenshot(compared.as_uri(), out / "compare.png", WIDE, 1000)
    with tensorboard(runs) as address:
        screenshot(f"{address}/#hparams", out / "hparams.png", WIDE, 900)
    print(*sorted(out.glob("*.png")), sep="\n")


def screenshot(address: str, path: Path, width: int, height: int = HEIGHT) -> None:
    """Save the top of a page as PNG, as it looks in a window of this size."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        sys.exit("error: no Chromium here: install the package chromium")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += [f"--user-data-dir={profile}", f"--virtual-time-budget={DRAWN_MILLISECONDS}"]
        options += [f"--window-size={width},{height}", f"--screenshot={path}", "--allow-file-access-from-files"]
        subprocess.run([program, *options, address], check=True, capture_output=True, timeout=180)


@contextmanager
def tensorboard(runs: Path) -> Iterator[str]:
    """Run TensorBoard on a free port and yield its address once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--host", "127.0.0.1"]
    with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.DEVNULL) as process:
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit("error: TensorBoard did not start")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    main()
