#!/usr/bin/env bash
# From trained folds to a submission: out-of-fold predictions, thresholds, test predictions, submission.csv, report.
#   bash launch/predict.sh --config configs/seunet.yaml --shards SHARDS --runs RUNS
#   bash launch/predict.sh --ranks 2 --cpu --config configs/demo.yaml --shards SHARDS --runs RUNS
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

ranks=$(count_ranks)
config="" shards="" runs="" cpu=()
while (($#)); do
  case $1 in
    --ranks) ranks=$2; shift ;;
    --config) config=$2; shift ;;
    --shards) shards=$2; shift ;;
    --runs) runs=$2; shift ;;
    --cpu) cpu=(--cpu) ;;
    *) echo "error: unknown argument $1 (see the first lines of launch/predict.sh)" >&2; exit 2 ;;
  esac
  shift
done

on_ranks() {
  if ((ranks == 1)); then
    python -m pneumo_dist "$@"
  else
    python -m torch.distributed.run --standalone --nproc-per-node "$ranks" -m pneumo_dist "$@"
  fi
}
on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split oof "${cpu[@]}"
on_ranks tune --config "$config" --runs "$runs"
on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split test "${cpu[@]}"
python -m pneumo_dist submit --config "$config" --runs "$runs"
python -m pneumo_dist report --config "$config" --shards "$shards" --runs "$runs"
