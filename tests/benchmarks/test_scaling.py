"""Arithmetic of docs/scaling.md, compared with simulated rings, and the tables of the page."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scaling import (
    A100,
    BATCH,
    H100,
    RATES,
    Assumptions,
    Interconnect,
    Network,
    all_reduce_s,
    encoder_parameters,
    exposed_s,
    main,
    markdown,
    published,
    sections,
    speedup,
    unet_parameters,
)

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
# One byte per second within a node, a tenth of that across nodes, and no latency.
SLOW = Interconnect("slow", 1.0, 0.1, 0.0, 0.0, 1.0)
ASSUMED = Assumptions()


@pytest.mark.parametrize(("encoder", "millions"), [("se_resnext50_32x4d", 34.5), ("se_resnext101_32x4d", 55.9)])
def test_parameters_of_the_networks_are_counted(encoder: str, millions: float) -> None:
    assert unet_parameters(encoder) / 1e6 == pytest.approx(millions, abs=0.05)
    assert 0.5 < encoder_parameters(encoder) / unet_parameters(encoder) < 1


def test_published_classifier_has_its_published_number_of_parameters() -> None:
    assert published()[0].network.parameters == pytest.approx(48.96e6, rel=1e-3)


def walked_ring(values: list[list[float]]) -> int:
    """Reduce chunk by chunk around a ring, with one message per rank and round; return the number of rounds."""
    count = len(values)
    rounds = 0
    for adds in (True, False):
        for turn in range(count - 1):
            sent = []
            for rank in range(count):
                chunk = (rank - turn + (0 if adds else 1)) % count
                sent.append(((rank + 1) % count, chunk, values[rank][chunk]))
            for rank, chunk, value in sent:
                values[rank][chunk] = values[rank][chunk] + value if adds else value
            rounds += 1
    return rounds


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ring_sends_as_many_chunks_as_the_formula_counts(world: int) -> None:
    values = [[float(10 * rank + chunk) for chunk in range(world)] for rank in range(world)]
    expected = [sum(10 * rank + chunk for rank in range(world)) for chunk in range(world)]
    rounds = walked_ring(values)
    assert values == [expected] * world
    # A round sends one chunk, which is the whole divided by the number of ranks.
    assert all_reduce_s(1.0, world, SLOW) == pytest.approx(rounds / world)


def test_across_nodes_each_gpu_reduces_its_share_over_its_own_card() -> None:
    size, nodes = 800.0, 4
    within = walked_ring([[1.0] * 8 for _ in range(8)]) * (size / 8)
    across = walked_ring([[1.0] * nodes for _ in range(nodes)]) * (size / 8 / nodes / 0.1)
    assert all_reduce_s(size, 8 * nodes, SLOW) == pytest.approx(within + across)
    assert all_reduce_s(size, 1, SLOW) == 0
    half = replace(SLOW, efficiency=0.5)
    assert all_reduce_s(size, 32, half) == pytest.approx(2 * (within + across))


def test_empty_messages_have_latency_too() -> None:
    wires = replace(SLOW, within_latency=2.0, across_latency=3.0)
    assert all_reduce_s(0.0, 64, wires) == 2 * 7 * 2.0 + 2 * 7 * 3.0


def walked_exposed(buckets: int, backward: float, each: float) -> float:
    """Simulate a backward pass and its reductions in small time steps; return the exposed seconds."""
    tick, now, running, done, ready = 1e-4, 0.0, 0.0, 0, 0
    while done < buckets:
        now += tick
        ready = min(buckets, int(now / backward * buckets + 1e-9))
        if running > 0:
            running -= tick
            if running <= 0:
                done += 1
        if running <= 0 and done < ready:
            running = each
    return now - backward


@pytest.mark.parametrize("reduction", [0.01, 0.2, 0.3])
def test_exposed_time_is_that_after_the_backward_pass(reduction: float) -> None:
    """There are five buckets of one byte; reducing one takes `reduction` seconds."""
    wires = Interconnect("test", 1 / reduction, 1.0, 0.0, 0.0, 1.0)
    assumed = Assumptions(gradient_bytes=1, bucket=1, backward=0.5)
    network = Network("test", 5, 4, 2.0)  # a step of two seconds, of which the backward pass is one
    one = all_reduce_s(1.0, 2, wires)
    assert one == pytest.approx(reduction)
    exposed = exposed_s(network, 2, wires, assumed)
    assert exposed == pytest.approx(walked_exposed(5, 1.0, one), abs=5e-3)
    assert exposed >= one - 1e-12, "the last bucket is never hidden"


def test_speed_up_decreases_with_bandwidth_and_stays_below_the_number_of_gpus() -> None:
    network = Network("test", 34_500_000, 16, 654.0)
    speedups = [speedup(network, world, H100, ASSUMED) for world in (1, 8, 64, 1024)]
    assert speedups[0] == 1
    assert all(value < world for value, world in zip(speedups[1:], (8, 64, 1024), strict=True))
    slow = replace(H100, across=H100.across / 100)
    assert speedup(network, 1024, slow, ASSUMED) < 0.5 * speedups[3]
    assert speedup(network, 1024, slow, Assumptions(gradient_bytes=2)) > speedup(network, 1024, slow, ASSUMED)


def test_model_is_an_upper_bound_of_published_figures() -> None:
    for each in published():
        assert each.speedup <= speedup(each.network, 8, A100, ASSUMED) < 8


def test_page_contains_the_tables_that_the_script_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, tables = PAGE.read_text(), sections(BATCH, H100, markdown)
    for table in tables:
        assert table in page, "run python -m benchmarks.scaling --markdown"
    monkeypatch.setattr("sys.argv", ["scaling", "--markdown"])
    assert main() == 0
    assert capsys.readouterr().out == "\n\n".join(tables) + "\n"
    assert all(encoder in page for encoder in RATES)
    assert math.isclose(H100.efficiency, 0.8)
