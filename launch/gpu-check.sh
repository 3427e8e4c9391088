#!/usr/bin/env bash
# Check training and prediction on this machine's GPUs, in 20 minutes, and write gpu-check.json to send back.
#   bash launch/gpu-check.sh [OPTIONS of benchmarks.gpu_check]
#   bash launch/gpu-check.sh --minutes 10
#   bash launch/gpu-check.sh --cpu          the same checks without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
python -m benchmarks.gpu_check "$@"
