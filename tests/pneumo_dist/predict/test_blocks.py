"""Blocks and spans: every film once, whole batches in one block, and work for every rank."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import Trained

from pneumo_dist.data.plan import fixed_batches
from pneumo_dist.predict.blocks import Block, Span, join_blocks, plan_blocks
from pneumo_dist.predict.predict import ROUNDS


def blocks_of(films: int, size: int, networks: Any = ()) -> list[Block]:
    rows = fixed_batches(np.arange(films), size)
    return [Block(f"pred-{number:05d}", each, networks, "") for number, each in enumerate(rows)]


@given(st.integers(1, 400), st.integers(1, 70), st.integers(1, 20), st.integers(1, 9), st.integers(1, 40))
def test_spans_hold_every_block_once_in_order(films: int, size: int, batch: int, world: int, most: int) -> None:
    blocks = blocks_of(films, size)
    spans = join_blocks(blocks, batch, most)
    assert [block for span in spans for block in span.blocks] == blocks
    for span in spans:
        dealt = [span.batches(rank, world) for rank in range(world)]
        assert len(span.blocks) == 1 or sum(map(len, dealt)) <= most
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        rows = np.sort(np.concatenate([row for batches in dealt for row in batches]))
        assert rows.tolist() == [row for block in span.blocks for row in block.films.tolist()]
        for batches in dealt:
            assert all(len({row // size for row in rows.tolist()}) == 1 for rows in batches)


@pytest.mark.parametrize("batch", range(1, 65))
def test_eight_ranks_work_at_every_eval_batch(batch: int) -> None:
    """No round of a span but its last leaves a rank idle, and of the time at least four fifths are work."""
    spans = join_blocks(blocks_of(64 * 100, 64), batch, 8 * ROUNDS)
    for span in spans[:-1]:
        counts = [len(span.batches(rank, 8)) for rank in range(8)]
        assert min(counts) >= 1 and sum(counts) >= 0.8 * 8 * max(counts)


def test_blocks_of_other_networks_are_another_span() -> None:
    one, other = blocks_of(4, 2, ("one",)), blocks_of(4, 2, ("other",))
    assert [len(span.blocks) for span in join_blocks([*one, *other], 1, 100)] == [2, 2]


def test_blocks_do_not_depend_on_anything_but_films_networks_and_recipe(trained: Trained) -> None:
    ensemble = trained.ensemble()

    def digests(**changes: Any) -> list[str]:
        given = {"split": "test", "folds": (), "size": 2, "recipe": {"a": 1}, **changes}
        return [block.digest for block in plan_blocks(ensemble, trained.shards, **given)]

    assert digests() == digests() and len(digests()) == 3
    assert not {*digests()} & {*digests(recipe={"a": 2})}
    assert len(digests(split="oof", folds=(1,), size=4)) == 2
    networks = tuple(replace(each, weight=2.0) for each in ensemble.networks)
    rest = replace(ensemble, networks=networks)
    assert [block.digest for block in plan_blocks(rest, trained.shards, "test", (), 2, {"a": 1})] == digests()


def test_span_of_a_single_large_block() -> None:
    (block,) = blocks_of(64, 64)
    assert join_blocks([block], 4, 3) == [Span((block,), 4)]
