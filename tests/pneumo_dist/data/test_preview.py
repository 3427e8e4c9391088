"""The picture of the network's input."""

import numpy as np
import numpy.typing as npt
import pytest
from builders import experiment_of

from pneumo_dist.data.preview import CAPTION, GAP, show_batch
from shards.dataset.table import Shards
from shards.errors import InputError
from shards.palette import LABEL

STILL = {"hflip": 0, "shift_scale_rotate": {"p": 0}, "tone": {"p": 0}}


def cells(picture: npt.NDArray[np.uint8], films: int, columns: int) -> npt.NDArray[np.uint8]:
    """Return the films of a picture, (films, columns, 64, 64, 3)."""
    side = 64 + GAP
    assert picture.shape == (CAPTION + films * side, columns * side, 3)
    rows = [picture[CAPTION + row * side + GAP : CAPTION + (row + 1) * side] for row in range(films)]
    return np.array([[row[:, c * side + GAP : (c + 1) * side] for c in range(columns)] for row in rows])


def test_without_augmentation_every_epoch_shows_the_same_film(films: Shards) -> None:
    experiment = experiment_of({"augment": STILL})
    shown = cells(show_batch(experiment, experiment.stages[0], films, 0, films=4, epochs=2), 4, 3)
    np.testing.assert_array_equal(shown[:, 1:], np.repeat(shown[:, :1], 2, axis=1))
    assert len(np.unique(shown[:, 0].reshape(4, -1), axis=0)) == 4


def test_epochs_differ_and_half_of_the_films_are_outlined(films: Shards) -> None:
    experiment = experiment_of({"augment": {"shift_scale_rotate": {"p": 1}}})
    shown = cells(show_batch(experiment, experiment.stages[0], films, 0, films=4, epochs=2), 4, 3)
    assert all(len(np.unique(row.reshape(3, -1), axis=0)) == 3 for row in shown)
    outlined = (shown[:, 0] == LABEL).all(axis=-1).any(axis=(1, 2))
    assert outlined.tolist() == [True, True, False, False]


def test_a_stage_that_trains_on_crops_shows_them_beside_the_whole_film(films: Shards) -> None:
    experiment = experiment_of({"augment": STILL, "eval_image_size": 96})
    shown = cells(show_batch(experiment, experiment.stages[0], films, 0, films=4, epochs=3), 4, 4)
    assert all(len(np.unique(row.reshape(4, -1), axis=0)) == 4 for row in shown)


@pytest.mark.parametrize(("count", "epochs"), [(0, 1), (1, 0)])
def test_no_film_or_epoch_is_an_input_error(films: Shards, count: int, epochs: int) -> None:
    experiment = experiment_of()
    with pytest.raises(InputError, match="at least 1"):
        show_batch(experiment, experiment.stages[0], films, 0, films=count, epochs=epochs)
