# Sourced by setup.sh: which CUDA this machine's driver supports, and whether its Python has a suitable torch.
# shellcheck shell=bash

# CUDA 13 needs at least this driver; older drivers run CUDA 12.
CUDA13_DRIVER=580

# Print the driver's major version, or nothing without a driver.
driver_version() {
  local version
  version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n1) || true
  version=${version%%.*}
  if [[ $version =~ ^[0-9]+$ ]]; then echo "$version"; fi
}

# Print the extra with the DALI for a driver. Without a driver (an empty version), either works on the CPU.
#   dali_extra VERSION
dali_extra() {
  if [[ -n $1 ]] && (($1 < CUDA13_DRIVER)); then echo dali-cuda12; else echo dali-cuda13; fi
}

# Exit unless an extra is empty or names a DALI.
#   check_extra EXTRA
check_extra() {
  [[ $1 =~ ^(dali-cuda1[23])?$ ]] || { echo "error: EXTRA=$1: give dali-cuda12 or dali-cuda13" >&2; exit 2; }
}

# Return whether a Python has torch 2.11 or newer, with torchvision, that finds this machine's GPU.
#   has_site_torch PYTHON
has_site_torch() {
  "$1" - >/dev/null 2>&1 <<'PYTHON'
import sys
import torch, torchvision
version = tuple(map(int, torch.__version__.split(".")[:2]))
sys.exit(version < (2, 11) or not torch.cuda.is_available())
PYTHON
}

# Print the pins without torch and the CUDA libraries that it installs. DALI stays pinned.
#   without_torch FILE
without_torch() {
  local libraries='cublas|cuda-[a-z]+|cudnn-cu[0-9]+|cufft|cufile|cusolver|cusparse|cusparselt-cu[0-9]+|nccl-cu[0-9]+'
  libraries+='|nvjitlink|nvshmem-cu[0-9]+|nvtx'
  grep -vE "^(torch|torchvision|triton|cuda-[a-z]+|nvidia-($libraries))==" "$1"
}
