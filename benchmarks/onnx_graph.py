"""Compare an ensemble's ONNX graph in onnxruntime with torch: largest difference, and films/s on one core.

    python -m benchmarks.onnx_graph
    python -m benchmarks.onnx_graph --arch scse_unet --encoder se_resnext50_32x4d --side 256 --networks 2

The networks have random weights and see each film and its mirror image, in float32, one film at a time. The films
are phantoms. The two take turns on every film, so that another load on the machine slows both. Run it with
OMP_NUM_THREADS=1.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import onnx_ir
import onnxruntime
import torch

from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork
from pneumo_dist.predict.onnx_graph import FILM, EnsembleGraph
from pneumo_dist.predict.onnx_trace import onnx_model
from shards.dicom.film import read_film
from shards.phantom.dataset import synthesize


def ensemble_of(config: ModelConfig, side: int, count: int) -> tuple[Ensemble, list[torch.nn.Module]]:
    """Return an ensemble of networks with random weights, whose batch norms have seen noise."""
    torch.manual_seed(0)
    networks = [build_model(config, pretrained=False) for _ in range(count)]
    with torch.no_grad():
        for network in networks:
            network.train()(torch.randn(4, config.in_channels, 64, 64))
            network.eval()
    network_input = NetworkInput(side, config.in_channels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def read() -> TrainedNetwork:
        raise AssertionError("the networks are given")

    parts = tuple(EnsembleNetwork(str(number), 0, 0, 1.0, network_input, config, read) for number in range(count))
    return Ensemble("random", parts, side, DataConfig(), 1, TtaConfig()), networks


def main() -> None:
    """Measure, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="unet")
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--networks", type=int, default=1)
    parser.add_argument("--films", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    config = ModelConfig(arch=arguments.arch, encoder=arguments.encoder)
    ensemble, networks = ensemble_of(config, arguments.side, arguments.networks)
    graph = EnsembleGraph(ensemble, networks).eval()
    start = time.perf_counter()
    content = onnx_ir.to_proto(onnx_model(ensemble, networks)).SerializeToString()
    print(f"export: {time.perf_counter() - start:.1f} s, {len(content) / 1e6:.0f} MB")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    seconds: dict[str, list[float]] = {"torch": [], "onnxruntime": []}
    largest, low, high = 0.0, 255.0, 0.0
    with TemporaryDirectory() as folder:
        made = synthesize(Path(folder), images=arguments.films, size=arguments.side, positive_rate=0.5, seed=3)
        films = [read_film(path).image[None] for path in sorted(made.dicom_dir.rglob("*.dcm"))]
    for number, film in enumerate([films[0], *films]):
        start = time.perf_counter()
        with torch.inference_mode():
            expected = graph(torch.from_numpy(film))[0].numpy()
        between = time.perf_counter()
        (found,) = session.run(None, {FILM: film})
        end = time.perf_counter()
        if number:  # the first film warms both up
            seconds["torch"].append(between - start)
            seconds["onnxruntime"].append(end - between)
        largest = max(largest, float(np.abs(found - expected).max()) * 255)
        low, high = min(low, float(expected.min()) * 255), max(high, float(expected.max()) * 255)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"largest difference: {largest:.2g} of 255 levels, over {len(films)} films (levels {low:.0f} to {high:.0f})")
    for name, median in medians.items():
        print(f"{name}: {1 / median:.2f} films/s on one core (median of {len(films)})")
    ratios = [one / other for one, other in zip(seconds["torch"], seconds["onnxruntime"], strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} over the films"
    print(f"onnxruntime / torch: {statistics.median(ratios):.2f} x ({spread})")


if __name__ == "__main__":
    main()
