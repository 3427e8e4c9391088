"""The GPU's resampling, run on the CPU with a stand-in for the one operator that DALI has only for GPUs."""

from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from dali_films import FIRST_PLACE

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.elastic import InputElastic
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.geometry import Geometry, GridSteps, Lens, Stored, coarse_map
from pneumo_dist.data.resample import BORDERS, by_coarse_map
from pneumo_dist.data.torch_loader import Films
from shards.dataset.table import Shards

dali_gpu = pytest.importorskip("pneumo_dist.data.dali_gpu")
dali = pytest.importorskip("nvidia.dali")

Image = npt.NDArray[Any]
# Marks pixels that remap does not write; films and masks here do not contain this value.
UNWRITTEN = 99
FLAGS = {dali.types.INTERP_LINEAR: cv2.INTER_LINEAR, dali.types.INTERP_NN: cv2.INTER_NEAREST}
SHAPES = [(96, 96), (128, 96), (70, 120), (60, 60), (1, 60)]
MOVES = {
    "turned out of the film": Geometry(True, 0.5, 0.8, (0.1, -0.08), Lens(1.5, (0.0004, 0.0))),
    "grid": Geometry(False, -0.3, 1.1, (0.0, 0.05), GridSteps((1.3, 0.8, 1, 1.2, 0.7), (0.7, 1, 1.3, 0.9, 1.1))),
    "elastic": Geometry(True, 0.2, 0.9, (0.1, -0.08), InputElastic(1, 120.0, 4.0, (2.0, -1.0, 0.5, 1.0, -2.0, 1.0))),
    "not moved": Geometry(),
}


def npp_remap(how: int, image: Image, x: Image, y: Image) -> Image:
    """Remap as specified by DALI 2.4's headers (operators/image/remap, kernels/imgproc/geom/remap_npp.h)."""
    assert x.ndim == y.ndim == 2, "a map has no channel axis"
    assert image.shape == (*x.shape, 1) and x.shape == y.shape, "output, input and maps have one size"
    rows, columns = x.shape
    inside = (x >= 0.5) & (x <= columns - 0.5) & (y >= 0.5) & (y <= rows - 0.5)
    moved = cv2.remap(image[..., 0], x - np.float32(0.5), y - np.float32(0.5), how)
    return np.where(inside, moved, UNWRITTEN).astype(np.uint8)[..., None]


def stand_in(image: Any, x: Any, y: Any, *, interp: Any, pixel_origin: str) -> Any:
    assert pixel_origin == "corner"
    return dali.fn.python_function(image, x, y, function=partial(npp_remap, FLAGS[interp]), output_layouts="HWC")


def film(shape: tuple[int, int]) -> tuple[Image, Image]:
    """Return a smooth film without the value UNWRITTEN, and a mask."""
    noise = np.random.default_rng(shape[0]).integers(0, 256, shape, np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), noise, 120, 255, cv2.NORM_MINMAX)
    mask = np.zeros(shape, np.uint8)
    cv2.ellipse(mask, (shape[1] // 3, shape[0] // 2), (20, 25), 20, 0, 360, 255, -1)
    return image, mask


def warped(films: list[tuple[Image, Image]], coarse: list[Image], size: int, border: str) -> list[list[Image]]:
    """Run the GPU's part of the graph over a batch of films on the CPU."""

    @dali.pipeline_def(batch_size=len(films), num_threads=1, device_id=None, exec_dynamic=False)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        inputs = [
            [image[..., None] for image, _ in films],
            [mask[..., None] for _, mask in films],
            coarse,
            [np.array([*image.shape, 1], np.int32) for image, _ in films],
        ]
        layouts = ["HWC", "HWC", "HWC", ""]
        image, mask, nodes, shape = (
            dali.fn.external_source(source=[values], cycle=True, layout=layout)
            for values, layout in zip(inputs, layouts, strict=True)
        )
        extent = dali.fn.cast(shape, dtype=dali.types.FLOAT)
        canvas = dali_gpu.canvas_of(shape, size)
        return tuple(
            dali_gpu.warped_by_coarse_map([image, mask], nodes, dali_gpu.last_of(nodes), extent, canvas, size, border)
        )

    built = pipeline()
    built.build()
    return [[np.array(output.at(number)) for number in range(len(films))] for output in built.run()]


@pytest.mark.parametrize("size", [64, 96, 160])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("move", MOVES)
def test_films_of_any_shape_are_resampled_as_on_the_cpu(
    move: str, border: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali.fn.experimental, "remap", stand_in)
    films = [film(shape) for shape in SHAPES]
    coarse = [coarse_map(MOVES[move], size, Stored(max(shape))) for shape in SHAPES]
    images, masks = warped(films, coarse, size, border)
    beyond = shared = united = 0
    for pair, nodes, image, mask in zip(films, coarse, images, masks, strict=True):
        expected, label = by_coarse_map(pair, nodes, size, border)
        assert image.shape == mask.shape == (size, size, 1) and image.dtype == mask.dtype == np.uint8
        assert UNWRITTEN not in mask
        assert np.abs(image[..., 0].astype(float) - expected).mean() < 1
        shared += int(((label > 127) & (mask[..., 0] > 127)).sum())
        united += int(((label > 127) | (mask[..., 0] > 127)).sum())
        beyond += int((expected == 0).sum())
    assert shared > 0.99 * united > 1000
    assert (beyond > 1000) == (border == "constant"), "beyond a film there are only zeros, or only its reflection"


# -- the whole graph

RECIPES: dict[str, dict[str, Any] | None] = {
    "first place": FIRST_PLACE,
    "not augmented": None,
    "affine": {"tone": {"p": 0}},
    "mirrored edges": {"border": "reflect", "random_resized_crop": {"p": 0.5}},
    "everything": {
        "border": "reflect",
        "distortion": {"p": 0.7},
        "clahe": {"p": 0.5},
        "tone": {"p": 0.8},
        "noise": {"p": 0.5},
    },
}


def reader_of(films: Shards, recipe: str, size: int, with_mask: bool = True) -> FilmReader:
    """Return a reader of films for a GPU."""
    recipe_values = RECIPES[recipe]
    augment = None if recipe_values is None else AugmentConfig.model_validate(recipe_values)
    data = DataConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return FilmReader(films, InputSpec(size, 1, data, device_id=0), with_mask, augment, seed=5)


def graph_of(reader: FilmReader, requests: list[FilmRequest], device_id: int | None) -> Any:
    """Define the pipeline as `dali_batches` does; it uses its device only after `build`."""
    from pneumo_dist.data.dali import _graph
    from pneumo_dist.data.dali_inputs import graph_inputs, input_table

    table = input_table(reader)
    inputs = [
        list(values) for values in zip(*(graph_inputs(table, reader, request) for request in requests), strict=True)
    ]
    return _graph(
        reader,
        table,
        lambda: inputs,
        None,
        batch_size=len(requests),
        num_threads=1,
        device_id=device_id,
        prefetch_queue_depth=2,
        exec_dynamic=device_id is not None,
    )


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_graph_for_a_gpu_can_be_defined_without_one(films: Shards, recipe: str, with_mask: bool) -> None:
    reader = reader_of(films, recipe, 64, with_mask)
    assert graph_of(reader, [FilmRequest(0, 0, 0), FilmRequest(1, 0, 0)], device_id=0).device_id == 0


@pytest.mark.filterwarnings("ignore:The external source node")
@pytest.mark.parametrize("size", [64, 96, 160])
@pytest.mark.parametrize("recipe", RECIPES)
def test_graph_for_a_gpu_gives_the_films_of_the_torch_loader(
    films: Shards, recipe: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes run on the CPU and remap has a stand-in; everything else is the GPU's graph."""
    decode = dali.fn.decoders.image
    monkeypatch.setattr(dali.fn.decoders, "image", lambda encoded, device, **options: decode(encoded, **options))
    monkeypatch.setattr(dali.data_node.DataNode, "gpu", lambda node: node)
    monkeypatch.setattr(dali.fn.experimental, "remap", stand_in)
    reader = reader_of(films, recipe, size)
    requests = [FilmRequest(row, epoch, 0) for epoch in range(2) for row in range(len(films))]
    pipeline = graph_of(reader, requests, device_id=None)
    pipeline.build()
    images, masks = (np.array(output.as_tensor()) for output in pipeline.run())
    assert images.shape == (len(requests), 1, size, size) and masks.shape == (len(requests), size, size, 1)
    shared = united = 0
    for request, image, mask in zip(requests, images, masks, strict=True):
        expected, label, _ = Films(reader)[request]
        assert np.abs(image - expected.numpy()).mean() * 255 < 2
        seen, truth = mask[..., 0] > 0, label[0].numpy() > 0
        shared, united = shared + int((seen & truth).sum()), united + int((seen | truth).sum())
    assert shared > 0.99 * united > 50 * len(requests)
