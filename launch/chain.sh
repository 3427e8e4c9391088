# Sourced by what goes from trained folds to a submission, on one machine or under SLURM.
# shellcheck shell=bash

# Print how many films of a split (holdout or test) the shards hold.
films_of() {
  on_one_node python -c 'import json, sys; print(json.load(open(sys.argv[1] + "/manifest.json"))["counts"][sys.argv[2]])' "$1" "$2"
}

# Out-of-fold, holdout and test predictions, thresholds, submission.csv and report.html; what is finished stands.
#   predict_chain CONFIG SHARDS RUNS [--cpu]
# The caller defines on_ranks, which runs a command of pneumo_dist on all ranks, and on_one_node, which runs any.
predict_chain() {
  local config=$1 shards=$2 runs=$3 device=("${@:4}") split films
  on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split oof "${device[@]}" || return
  on_ranks tune --config "$config" --runs "$runs" || return
  for split in holdout test; do
    films=$(films_of "$shards" $split) || return
    ((films)) || continue
    on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split $split "${device[@]}" || return
    [[ $split == holdout ]] || on_one_node python -m pneumo_dist submit --config "$config" --runs "$runs" || return
  done
  on_one_node python -m pneumo_dist report --config "$config" --shards "$shards" --runs "$runs"
}
