"""Arithmetic of an epoch on eight GPUs, and its table in docs/scaling.md."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling import Network, markdown
from benchmarks.scaling_epoch import CARD, STRAGGLING, TRIPLET_S, epoch, epoch_table, main, measured_rows

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
# A step of 2 films takes a second. The network is so small that its reduction and its save take no time.
NETWORK = Network("test", 1, 2, 2.0)


def test_epoch_of_a_few_steps_is_counted_by_hand() -> None:
    # Of 170 films 136 train, in 8 steps of 16; 8 films are left over. 34 are validated in 3 steps.
    found = epoch(NETWORK, busy_s=0.9, films=170)
    assert found.training == 8 and found.validation == pytest.approx(1)
    assert found.straggling == pytest.approx(8 * STRAGGLING)
    assert found.busy == pytest.approx(9 * 0.9)
    assert found.reduction == pytest.approx(0, abs=1e-2) and found.save == pytest.approx(0, abs=1e-6)
    assert found.whole == pytest.approx(9 + 8 * STRAGGLING + TRIPLET_S + found.reduction + found.save)
    assert found.share == pytest.approx(8.1 / found.whole)


def test_the_tail_costs_a_faster_network_a_larger_share() -> None:
    slow, fast = epoch(NETWORK, 1.0), epoch(replace(NETWORK, rate=20.0), 0.1)
    assert fast.share < slow.share < 1


def test_page_contains_the_table_of_the_measured_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured_rows()
    assert {row["device"] for row in rows} == {CARD}
    table = markdown(epoch_table(rows))
    assert table in PAGE.read_text(), "run python -m benchmarks.scaling_epoch --markdown"
    monkeypatch.setattr("sys.argv", ["scaling_epoch", "--markdown"])
    assert main() == 0
    assert capsys.readouterr().out == table + "\n"
