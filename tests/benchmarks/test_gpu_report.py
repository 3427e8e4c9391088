"""Tables of GPU rows, from invented rows and in docs/performance.md."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_report import BEGIN, END, Rates, by_card, draw, main, not_measured, page_tables, replaced, tables
from benchmarks.gpu_store import LOADER, NETWORKS, SHIPPED_WAYS, WAYS, Row, read_rows, tasks
from benchmarks.tables import idle

DOCS = Path(__file__).parents[2] / "docs"
CARD = "NVIDIA H100 80GB HBM3"
NETWORK, SIZE = "se_resnext50_32x4d", 1024
# 100 GFLOP per image, a peak of 1,000 TFLOP/s, and a roofline of 200 images/s.
TRACED = {"gflop_per_image": 100.0, "peak_half_tflops": 1000.0, "roofline_images_per_s": 200.0}
RATES = {"plain": 30.0, "bf16": 90.0, "channels_last": 120.0, "fp16": 118.0, "compile": 150.0}
RATES |= {"dali-png": 120.0, "dali-jpeg": 147.0}


def row(network: str, size: int, way: str, rate: float, **values: Any) -> Row:
    machine = {"device": CARD, "device_type": "cuda", "date": "2027-01-02", "torch": "2.15", "cuda": "13.2"}
    versions = {"python": "3.12", "dali": "2.4", "cores": 16}
    figures = {"images_per_s": rate, "batch": 12, "idle_share": 0.03, "peak_memory_gb": 55.5}
    return {**machine, **versions, "network": network, "size": size, "way": way, **figures, **values}


@pytest.fixture
def rows() -> list[Row]:
    trained = [row(NETWORK, SIZE, way, rate) for way, rate in RATES.items()]
    trained[0] |= {"gflop_per_image": 100.0, "roofline_images_per_s": 40.0}
    trained[1] |= TRACED
    return [*trained, row(LOADER, 512, "dali-png", 3000.0), row(LOADER, 512, "plain-png", 1000.0)]


def lines_of(text: str, start: str) -> list[list[str]]:
    """Return the cells of the table lines that begin with these words."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_missing_rows_have_no_line_in_the_tables_and_are_listed_in_one_sentence(rows: list[Row]) -> None:
    assert page_tables([]) == "No GPU has been measured yet.\n"
    text = tables(rows)
    body = [line for line in lines_of(text, "") if line[0] != "---"]
    targets = [line for line in body if "at least" in line[3]]
    networks = [line for line in body if line[0].startswith("(") and line not in targets]
    loaders = [line for line in body if line[0].startswith(("png", "jpeg"))]
    assert [len(each) for each in (targets, networks, loaders)] == [4, len(WAYS), 1]
    assert len(body) == 3 + sum(map(len, (targets, networks, loaders))), "and a head for each of three tables"
    assert text.count("not yet measured") == 1 and len(not_measured(rows).splitlines()) == 1
    assert "se_resnext50_32x4d at 512 px (all);" in text and f"{NETWORK} at {SIZE} px" not in not_measured(rows)
    assert f"{LOADER} at 512 px (dali-jpeg, plain-jpeg);" in text
    every = [row(task.network, task.size, task.way, 1.0) for task in tasks(NETWORKS, [*WAYS, *SHIPPED_WAYS, LOADER])]
    assert not_measured(every) == ""


def test_page_holds_the_tables_of_the_rows_in_the_repository() -> None:
    measured = by_card(read_rows(DOCS / "gpu-rows.jsonl"))
    page = (DOCS / "performance.md").read_text()
    assert replaced(page, page_tables(measured)) == page, "run python -m benchmarks.gpu_report"


def test_command_writes_page_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DOCS / "performance.md", tmp_path)
    monkeypatch.setattr("sys.argv", ["gpu_report", "--docs", str(tmp_path)])
    assert main() == 0
    assert (tmp_path / "performance.md").read_text() == (DOCS / "performance.md").read_text()
    assert (tmp_path / "gpu-rates.png").read_bytes().startswith(b"\x89PNG")


def test_tables_show_shares_of_peak_roofline_and_synthetic_rate(rows: list[Row]) -> None:
    text = tables(rows)
    (better,) = lines_of(text, "(b', c)")
    assert better[1:] == ["120.0", "12", "1.2 %", "60.0 %", "", "3.0 %", "55.5 GB"]
    (plain,) = lines_of(text, "(a)")
    assert plain[1:5] == ["30.0", "12", "0.3 %", "75.0 %"], "its roofline is that of float32"
    (jpeg,) = lines_of(text, "(f) (d)")
    assert jpeg[1:6] == ["147.0", "12", "1.5 %", "73.5 %", "98.0 %"]
    (loader,) = lines_of(text, "png, 512 px")
    assert loader[1:] == ["3000.0", "1000.0", "3.00 x"]
    assert CARD in text and "2027-01-02" in text and "gpu-rates.png" in page_tables([rows])


def test_targets_are_met_or_missed(rows: list[Row]) -> None:
    def verdicts(rows: list[Row]) -> list[list[str]]:
        starts = ("(c) of the eager", "(d) / (c)", "(f) / (d)", "(d) / (a)")
        lines = [line for start in starts for line in lines_of(tables(rows), start)]
        assert all(line[1] == f"{NETWORK}, {SIZE} px" for line in lines)
        return [line[2:] for line in lines]

    assert verdicts(rows) == [
        ["60.0 %", "at least 55.0 %", "met"],
        ["1.25 x", "at least 1.30 x", "**missed**"],
        ["98.0 %", "at least 95.0 %", "met"],
        ["5.00 x", "at least 4.00 x", "met"],
    ]
    slow = [{**each, "images_per_s": 60.0} if each["way"] == "compile" else each for each in rows]
    assert [line[2] for line in verdicts(slow)] == ["met", "**missed**", "met", "**missed**"]
    without = [each for each in rows if each["way"] != "compile"]
    assert [line[0] for line in verdicts(without)] == ["60.0 %"]


def test_idle_share_compares_a_known_busy_time_with_a_step_without_the_profiler() -> None:
    assert idle({"idle_share": 0.7, "busy_s": 0.06, "step_s": 0.1}) == pytest.approx(0.4)
    assert idle({"idle_share": 0.7, "busy_s": 0.11, "step_s": 0.1}) == 0
    assert idle({"idle_share": 0.7, "step_s": 0.1}) == 0.7 and idle({"step_s": 0.1}) is None


def test_faster_layout_is_way_c(rows: list[Row]) -> None:
    assert Rates(rows, NETWORK, SIZE).layout == "channels_last"
    other = [{**each, "images_per_s": 200.0} if each["way"] == "bf16" else each for each in rows]
    assert Rates(other, NETWORK, SIZE).layout == "bf16"
    assert Rates(rows[:2], NETWORK, SIZE).layout is None


def test_each_card_has_its_tables_and_a_cpu_has_none(rows: list[Row]) -> None:
    other = {**rows[0], "device": "NVIDIA H200"}
    cpu = {**rows[0], "device": "CPU (x86_64)", "device_type": "cpu"}
    assert by_card([cpu]) == []
    assert by_card([*rows, other, cpu]) == [[other], rows]
    assert by_card([*rows, other, cpu], CARD) == [rows]
    assert by_card([*rows, cpu], "CPU (x86_64)") == []
    text = page_tables([[other], rows])
    assert text.index("NVIDIA H200, ") < text.index(f"{CARD}, ") and f"on the {CARD}]" in text


def test_card_without_known_peaks_has_rates_but_no_shares(rows: list[Row]) -> None:
    peaks = {"peak_half_tflops", "roofline_images_per_s"}
    bare = [{key: value for key, value in each.items() if key not in peaks} for each in rows]
    (better,) = lines_of(tables(bare), "(b', c)")
    assert better[1:5] == ["120.0", "12", "", ""]


def test_only_the_text_between_the_marks_is_replaced() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(page, "new\n") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replaced(replaced(page, "new\n"), "new\n") == replaced(page, "new\n")
    with pytest.raises(ValueError, match="needs the lines"):
        replaced("no marks", "new")


def test_rates_are_drawn(rows: list[Row], tmp_path: Path) -> None:
    draw(rows, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
