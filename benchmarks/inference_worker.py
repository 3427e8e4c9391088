"""Rank of `benchmarks.inference`: predict with a network of random weights, and print time and peak memory.

python -m benchmarks.inference_worker SHARDS OUT SIZE {test,oof}
"""

import json
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import memory_mib
from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.maps.store import Predictions
from pneumo_dist.network.build import build_model
from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.ranks import process_group
from shards.dataset.table import Shards


def main() -> int:
    shards, out, size, split = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    model = ModelConfig(encoder="resnet34" if size > 64 else "resnet18", in_channels=1)

    def read() -> TrainedNetwork:
        torch.manual_seed(0)
        # No lineage: it was not trained on any film.
        return TrainedNetwork(model, build_model(model, pretrained=False).state_dict(), "float32", ())

    data = DataConfig()
    network = EnsembleNetwork("random", 0, 0, 1.0, NetworkInput(size, 1, data.mean, data.std), model, read)
    ensemble = Ensemble("random", (network,), size, data, 8, TtaConfig())
    with process_group(cpu=True) as ranks:
        start = time.perf_counter()
        folds = (0,) if split == "oof" else ()
        predict(ensemble, Shards(shards), out, ranks, PredictOptions(split, folds))
        seconds = time.perf_counter() - start
        if ranks.is_main:
            print(json.dumps({"seconds": seconds, "films": len(Predictions(out)), "peak_mib": memory_mib("VmHWM")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
