"""Whether a small DALI graph runs, as a line of JSON: `probe_dali.py [gpu]`; run in a process of its own (`probes.py`).

The graph decodes and normalises as that of `data/dali.py` does. Without `gpu` no driver is needed.
"""

import json
import sys
from typing import Any

import cv2
import numpy as np

SIDE = 8


def main(on_gpu: bool) -> None:
    """Print the facts that `probes.DaliFacts` takes."""
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
    found = (output.as_cpu() if on_gpu else output).as_array()
    is_right = bool(np.array_equal(found, np.broadcast_to(image[None, :, :, None], (2, SIDE, SIDE, 1))))
    print(json.dumps({"version": dali.__version__, "cuda": getattr(dali, "__cuda_version__", 0), "is_right": is_right}))


if __name__ == "__main__":
    main("gpu" in sys.argv[1:])
