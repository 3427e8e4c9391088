#!/usr/bin/env bash
# Go from trained folds to a submission: out-of-fold predictions, thresholds, holdout and test predictions, submission.csv,
# report.html. Without test films there is no submission.
#   bash launch/predict.sh --config seunet --shards SHARDS --runs RUNS
#   bash launch/predict.sh --cpu 2 --config demo --shards SHARDS --runs RUNS
# Options:
#   --config CONFIG          a YAML file, or the name of a shipped config; an experiment or an ensemble
#   --shards SHARDS          folder that 'shards build' made
#   --runs RUNS              folder of all runs
#   --set KEY=VALUE          override a config key, as in the training; may be repeated
#   --ranks N                number of GPUs (all)
#   --cpu [N]                predict on the CPU with N ranks (1)
#   --models-in-memory N     largest number of networks that each rank holds (all that fit)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/predict.sh "$@"
source launch/common.sh
source launch/chain.sh

need_lines "$@"
ranks=$(count_ranks)
config="" shards="" runs="" options=()
while (($#)); do
  case $1 in
    --ranks) need_value "$@"; ranks=$2; shift ;;
    --config) need_value "$@"; config=$2; shift ;;
    --shards) need_value "$@"; shards=$2; shift ;;
    --runs) need_value "$@"; runs=$2; shift ;;
    --set) need_value "$@"; options+=("$1" "$2"); shift ;;
    --models-in-memory) need_value "$@"; need_number "$1" "$2" 1; options+=("$1" "$2"); shift ;;
    --cpu)
      options+=(--cpu)
      [[ ${2:-} =~ ^[0-9]+$ ]] && { ranks=$2; shift; }
      ;;
    *) refuse "unknown argument $1 (see bash launch/predict.sh --help)" ;;
  esac
  shift
done
need_number --ranks "$ranks" 1
if [[ -z $config || -z $shards || -z $runs ]]; then
  refuse "--config, --shards and --runs are needed (see bash launch/predict.sh --help)"
fi

# The ranks end if this script is killed.
on_ranks() {
  local -x PNEUMO_DIST_STARTER=$BASHPID
  if ((ranks == 1)); then
    python -m pneumo_dist "$@"
  else
    # Use the loopback address, as this host's name may not resolve.
    python -m pneumo_dist.ranks.agent --standalone --local-addr 127.0.0.1 --nproc-per-node "$ranks" -m pneumo_dist "$@"
  fi
}
predict_chain "$ranks" "$config" "$shards" "$runs" "${options[@]}"
