#!/usr/bin/env bash
# From trained folds to a submission: out-of-fold predictions, thresholds, holdout and test predictions, submission.csv,
# report.html. Without test films there is no submission.
#   bash launch/predict.sh --config configs/seunet.yaml --shards SHARDS --runs RUNS
#   bash launch/predict.sh --cpu 2 --config configs/demo.yaml --shards SHARDS --runs RUNS
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
source launch/chain.sh

ranks=$(count_ranks)
config="" shards="" runs="" cpu=()
while (($#)); do
  case $1 in
    --ranks) ranks=$2; shift ;;
    --config) config=$2; shift ;;
    --shards) shards=$2; shift ;;
    --runs) runs=$2; shift ;;
    --cpu)
      cpu=(--cpu)
      [[ ${2:-} =~ ^[0-9]+$ ]] && { ranks=$2; shift; }
      ;;
    *) echo "error: unknown argument $1 (see the first lines of launch/predict.sh)" >&2; exit 2 ;;
  esac
  shift
done

on_one_node() { "$@"; }
on_ranks() {
  if ((ranks == 1)); then
    python -m pneumo_dist "$@"
  else
    python -m pneumo_dist.ranks.agent --standalone --nproc-per-node "$ranks" -m pneumo_dist "$@"
  fi
}
predict_chain "$config" "$shards" "$runs" "${cpu[@]}"
