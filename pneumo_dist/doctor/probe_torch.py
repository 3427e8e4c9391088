"""Prints facts about torch and the GPUs as one line of JSON: `probe_torch.py ROOT [cpu]`.

`probes.py` runs it in a separate process, because a library may crash or hang. `ROOT` is the folder that contains the
package `pneumo_dist`. With `cpu`, GPUs are not touched.
"""

import importlib
import json
import sys
from typing import Any


def main(root: str, use_gpus: bool) -> None:
    """Print the fields of `probes.TorchFacts`."""
    import torch
    import torch.distributed as dist

    is_distributed = dist.is_available()
    has_nccl = is_distributed and dist.is_nccl_available()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "archs": torch.cuda.get_arch_list(),
        "has_gloo": is_distributed and dist.is_gloo_available(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version()[:3])) if has_nccl else None,
    }
    if use_gpus:
        facts["driver_cuda"] = _driver_cuda(torch)
        facts["is_available"] = torch.cuda.is_available()
        if facts["is_available"]:
            facts["gpus"] = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
        else:
            facts["init_error"] = _init_error(torch)
    facts["import_error"] = _import_error(root)
    print(json.dumps(facts))


def _driver_cuda(torch: Any) -> int:
    """Return the newest CUDA that the driver supports, as 1000 * major + 10 * minor; 0 without a driver."""
    try:
        return int(torch._C._cuda_getDriverVersion())
    except (AttributeError, RuntimeError):  # a build without CUDA
        return 0


def _init_error(torch: Any) -> str:
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return str(error)
    return ""


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    """Return the fields of `probes.GpuFacts`, after the same computation as in `ranks.ranks.pick_device`."""
    facts: dict[str, Any] = {"name": f"GPU {index}", "memory": 0, "capability": (0, 0), "error": ""}
    try:
        properties = torch.cuda.get_device_properties(index)
        facts |= {"name": properties.name, "memory": properties.total_memory}
        facts["capability"] = properties.major, properties.minor
        torch.cuda.set_device(index)
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    except RuntimeError as error:
        facts["error"] = str(error) or "it cannot be used"
    return facts


def _import_error(root: str) -> str:
    """Import training and return why that fails; empty if it does not."""
    sys.path.insert(0, root)
    try:
        importlib.import_module("pneumo_dist.train.fold")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1], "cpu" not in sys.argv[2:])
