"""Runs a small DALI graph and prints facts about it as one line of JSON: `probe_dali.py [gpu]`.

`probes.py` runs it in a separate process. The graph decodes and normalises like the one in `data/dali.py`. It needs no
driver without `gpu`.
"""

import json
import sys
from typing import Any

import cv2
import numpy as np

SIDE = 8


def main(on_gpu: bool) -> None:
    """Print the fields of `probes.DaliFacts`."""
    import nvidia.dali as dali
    from nvidia.dali import fn, pipeline_def, types

    image = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    encoded = cv2.imencode(".png", image)[1].ravel()

    @pipeline_def(batch_size=2, num_threads=1, device_id=0 if on_gpu else None)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        content = fn.external_source(lambda info: encoded, batch=False, dtype=types.UINT8, ndim=1)
        decoded = fn.decoders.image(content, device="mixed" if on_gpu else "cpu", output_type=types.GRAY)
        return fn.crop_mirror_normalize(decoded, dtype=types.FLOAT, mean=[0.0], std=[1.0], output_layout="HWC")

    pipeline = graph()
    pipeline.build()
    (output,) = pipeline.run()
    pixels = (output.as_cpu() if on_gpu else output).as_array()
    is_exact = bool(np.array_equal(pixels, np.broadcast_to(image[None, :, :, None], (2, SIDE, SIDE, 1))))
    print(json.dumps({"version": dali.__version__, "cuda": getattr(dali, "__cuda_version__", 0), "is_exact": is_exact}))


if __name__ == "__main__":
    main("gpu" in sys.argv[1:])
