# Sourced by what goes from trained folds to a submission, on one machine or under SLURM.
# shellcheck shell=bash

# Out-of-fold, holdout and test predictions, thresholds, submission.csv and report.html; what is finished stands.
#   predict_chain RANKS CONFIG SHARDS RUNS [--cpu]
# RANKS are those of a node. The caller defines on_ranks, which runs a command of pneumo_dist on all ranks, and on_one_node,
# which runs any.
predict_chain() {
  local ranks=$1 config=$2 shards=$3 runs=$4 device=("${@:5}") plan films split
  # Bad input is found here by one process with one clear line, not by every rank.
  plan=$(on_one_node python -m pneumo_dist predict --dry-run --json --ranks "$ranks" --config "$config" --shards "$shards" \
    --runs "$runs" "${device[@]}") || return
  on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split oof "${device[@]}" || return
  on_ranks tune --config "$config" --runs "$runs" || return
  for split in holdout test; do
    films=$(json_values "films.$split" <<<"$plan") || return
    [[ $films != 0 ]] || continue
    on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split $split "${device[@]}" || return
    [[ $split == holdout ]] || on_one_node python -m pneumo_dist submit --config "$config" --runs "$runs" || return
  done
  on_one_node python -m pneumo_dist report --config "$config" --shards "$shards" --runs "$runs"
}
