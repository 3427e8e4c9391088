#!/usr/bin/env bash
# Check training and prediction on this machine's GPUs, in 20 minutes, and write gpu-check.json to send back.
#   bash launch/gpu-check.sh
# Options:
#   --minutes M              maximum duration (20)
#   --out FILE               the report (gpu-check.json)
#   --checks CHECK…          checks to run (all)
#   --no-rows                measure nothing
#   --work FOLDER            folder for films and rows (/tmp/gpu-check)
#   --cpu                    the same checks without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/gpu-check.sh "$@"
source launch/common.sh
python -m benchmarks.gpu_check "$@"
