"""What torch says of itself and of the GPUs, as a line of JSON: `probe_torch.py ROOT [cpu]`.

Run in a process of its own (`probes.py`), because a library may also crash or hang. `ROOT` is the folder that holds the
package `pneumo_dist`; with `cpu` no GPU is touched.
"""

import importlib
import json
import sys
from typing import Any


def main(root: str, use_gpus: bool) -> None:
    """Print the facts that `probes.TorchFacts` takes."""
    import torch
    import torch.distributed as dist

    is_distributed = dist.is_available()
    has_nccl = is_distributed and dist.is_nccl_available()
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "archs": torch.cuda.get_arch_list(),
        "has_gloo": is_distributed and dist.is_gloo_available(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version()[:3])) if has_nccl else None,  # type: ignore[no-untyped-call]
    }
    if use_gpus:
        facts["driver_cuda"] = _driver_cuda(torch)
        facts["is_available"] = torch.cuda.is_available()
        if facts["is_available"]:
            facts["gpus"] = [_gpu(torch, index) for index in range(torch.cuda.device_count())]
        else:
            facts["refusal"] = _refusal(torch)
    facts["import_fault"] = _import_fault(root)
    print(json.dumps(facts))


def _driver_cuda(torch: Any) -> int:
    """Return the newest CUDA that the driver runs, as 1000 * major + 10 * minor; 0 without a driver."""
    try:
        return int(torch._C._cuda_getDriverVersion())
    except (AttributeError, RuntimeError):  # a build without CUDA
        return 0


def _refusal(torch: Any) -> str:
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return str(error)
    return ""


def _gpu(torch: Any, index: int) -> dict[str, Any]:
    """Return what a GPU is, and why `distributed.pick_device` would refuse it."""
    facts: dict[str, Any] = {"name": f"GPU {index}", "memory": 0, "capability": (0, 0), "fault": ""}
    try:
        found = torch.cuda.get_device_properties(index)
        facts |= {"name": found.name, "memory": found.total_memory, "capability": (found.major, found.minor)}
        torch.cuda.set_device(index)
        torch.ones(1, device=f"cuda:{index}").add_(1).item()
    except RuntimeError as error:
        facts["fault"] = str(error) or "it cannot be used"
    return facts


def _import_fault(root: str) -> str:
    """Import what training imports and return why that fails; empty where it does not."""
    sys.path.insert(0, root)
    try:
        importlib.import_module("pneumo_dist.train.fold")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1], "cpu" not in sys.argv[2:])
