#!/usr/bin/env bash
# Run TensorBoard over all experiments and folds in a folder of runs, reachable from this machine only.
#   bash launch/monitor.sh RUNS            http://localhost:6006
#   bash launch/monitor.sh RUNS 6007       another port
# From another machine, with the same address in a browser there:
#   ssh -L 6006:localhost:6006 THIS_MACHINE
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/monitor.sh "$@"
if [[ ! -d ${1:-} ]]; then
  refuse "${1:-RUNS}: no such folder; give the folder of the runs (bash launch/monitor.sh RUNS)"
fi
source launch/common.sh
need_number PORT "${2:-6006}" 1
exec tensorboard --logdir "$1" --host localhost --port "${2:-6006}"
