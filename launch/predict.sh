#!/usr/bin/env bash
# Go from trained folds to a submission: out-of-fold predictions, thresholds, holdout and test predictions, submission.csv,
# report.html. Without test films there is no submission.
#   bash launch/predict.sh --config seunet --shards SHARDS --runs RUNS
#   bash launch/predict.sh --cpu 2 --config demo --shards SHARDS --runs RUNS
# --models-in-memory N limits the networks that each rank holds; by default it holds all that fit.
set -euo pipefail
cd "$(dirname "$0")/.."
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
    --models-in-memory) need_value "$@"; need_number "$1" "$2" 1; options+=("$1" "$2"); shift ;;
    --cpu)
      options+=(--cpu)
      [[ ${2:-} =~ ^[0-9]+$ ]] && { ranks=$2; shift; }
      ;;
    *) refuse "unknown argument $1 (see the first lines of launch/predict.sh)" ;;
  esac
  shift
done
need_number --ranks "$ranks" 1
if [[ -z $config || -z $shards || -z $runs ]]; then
  refuse "--config, --shards and --runs are needed (see the first lines of launch/predict.sh)"
fi

on_ranks() {
  if ((ranks == 1)); then
    python -m pneumo_dist "$@"
  else
    # Use the loopback address, as this host's name may not resolve.
    python -m pneumo_dist.ranks.agent --standalone --local-addr 127.0.0.1 --nproc-per-node "$ranks" -m pneumo_dist "$@"
  fi
}
predict_chain "$ranks" "$config" "$shards" "$runs" "${options[@]}"
