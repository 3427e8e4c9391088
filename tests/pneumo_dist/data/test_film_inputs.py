"""The process that computes the graph's inputs gives those of the rank, batch by batch, and says why it ends."""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from dali_films import RECIPE, every_request

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.dali_inputs import graph_inputs, input_table
from pneumo_dist.data.film_inputs import FilmInputs
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from shards.dataset.table import Shards
from shards.dataset.tar import CorruptSample
from shards.errors import InputError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="DALI is for Linux")


def reader_of(films: Shards, device_id: int | None = None) -> FilmReader:
    augment = AugmentConfig.model_validate({**RECIPE, "distortion": {"p": 0.5, "elastic": {"pixels": "input"}}})
    return FilmReader(films, InputSpec(64, 1, DataConfig(), device_id), with_mask=True, augment=augment, seed=3)


@pytest.fixture
def begin() -> Iterator[Callable[..., FilmInputs]]:
    """Starts inputs, and ends them afterwards."""
    started: list[FilmInputs] = []

    def start(*arguments: Any) -> FilmInputs:
        started.append(FilmInputs(*arguments))
        return started[-1]

    yield start
    for inputs in started:
        inputs.close()


def batches_of(films: Shards, epochs: int, batch: int) -> list[list[FilmRequest]]:
    requests = every_request(films, epochs)
    return [requests[start : start + batch] for start in range(0, len(requests), batch)]


def assert_same(inputs: list[Any], reader: FilmReader, requests: list[FilmRequest]) -> None:
    table = input_table(reader)
    expected = zip(*(graph_inputs(table, reader, request) for request in requests), strict=True)
    for values, ours in zip(expected, inputs, strict=True):
        assert isinstance(ours, np.ndarray) == (len({value.shape for value in values}) == 1)
        for value, our in zip(values, ours, strict=True):
            assert our.dtype == value.dtype
            np.testing.assert_array_equal(our, value)


@pytest.mark.parametrize("device_id", [None, 0])
@pytest.mark.parametrize("in_flight", [1, 5, 18])
def test_inputs_are_those_of_the_rank_and_stay_until_they_are_released(
    films: Shards, begin: Callable[..., FilmInputs], device_id: int | None, in_flight: int
) -> None:
    reader, batches = reader_of(films, device_id), batches_of(films, 20, 3)
    assert len(batches) == 80
    inputs = begin(reader, batches, 3)
    taken: list[list[Any]] = []
    for number in range(len(batches)):
        taken.append(inputs())
        assert inputs.pending == [
            request for films in batches[number + 1 - len(taken) : number + 1] for request in films
        ]
        if len(taken) == in_flight:
            assert_same(taken.pop(0), reader, batches[number + 1 - in_flight])
            assert inputs.release() == [request.index for request in batches[number + 1 - in_flight]]
    for _ in range(3):  # DALI asks again while it computes the last batches
        with pytest.raises(StopIteration):
            inputs()
    for values, requests in zip(taken, batches[-len(taken) :], strict=False):
        assert_same(values, reader, requests)


def test_requests_may_be_endless(films: Shards, begin: Callable[..., FilmInputs]) -> None:
    reader = reader_of(films)
    inputs = begin(reader, Endless(batches_of(films, 1, 4)), 4)
    for requests in itertools.islice(Endless(batches_of(films, 1, 4)), 40):
        assert_same(inputs(), reader, requests)
        inputs.release()


class Endless:
    def __init__(self, batches: list[list[FilmRequest]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[FilmRequest]]:
        return itertools.cycle(self.batches)


def test_error_names_film_epoch_and_step_every_time(
    damaged: tuple[Shards, str, str], begin: Callable[..., FilmInputs]
) -> None:
    shards, shard, key = damaged
    inputs = begin(reader_of(shards), [[FilmRequest(7, 2, 11)]], 1)
    for _ in range(2):
        with pytest.raises(CorruptSample, match=rf"(?s){shard}.*{key}.*epoch 2, step 11\b"):
            inputs()


def test_other_errors_carry_the_traceback_of_the_process(films: Shards, begin: Callable[..., FilmInputs]) -> None:
    inputs = begin(reader_of(films), [[FilmRequest(10_000, 0, 0)]], 1)
    with pytest.raises(IndexError) as caught:
        inputs()
    assert "graph_inputs" in caught.value.__notes__[0]


def test_process_that_is_killed_is_one_line(films: Shards, begin: Callable[..., FilmInputs]) -> None:
    inputs = begin(reader_of(films), batches_of(films, 50, 2), 2)
    inputs()
    os.kill(inputs._process.pid, signal.SIGKILL)
    with pytest.raises(InputError, match=r"the process that reads films ended .*out of memory") as caught:
        for _ in range(5):
            inputs()
            inputs.release()
    assert len(str(caught.value).splitlines()) == 1


@dataclass(frozen=True)
class SlowRequests:
    """Requests of which the second batch takes a while."""

    batches: list[list[FilmRequest]]

    def __iter__(self) -> Iterator[list[FilmRequest]]:
        yield self.batches[0]
        time.sleep(1)
        yield from self.batches[1:]


def test_process_whose_rank_is_gone_ends_without_a_report(films: Shards, begin: Callable[..., FilmInputs]) -> None:
    """The kernel closes the pipes of a killed rank before it signals the rank's children."""
    inputs = begin(reader_of(films), SlowRequests(batches_of(films, 1, 2)), 2)
    inputs()
    inputs._connection.close()
    inputs._process.join(30)
    assert inputs._process.exitcode == 0


def test_memory_has_no_name(films: Shards, begin: Callable[..., FilmInputs]) -> None:
    begin(reader_of(films), batches_of(films, 1, 2), 2)()
    with open("/proc/self/maps") as maps:
        names = [line.split(maxsplit=5)[-1].strip() for line in maps]
    assert "/memfd:films (deleted)" in names
