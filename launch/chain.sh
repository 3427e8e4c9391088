# Sourced by the scripts that go from trained folds to a submission, on one machine or under SLURM.
# shellcheck shell=bash

# Write out-of-fold, holdout and test predictions, thresholds, submission.csv and report.html. Finished output is kept.
#   predict_chain RANKS CONFIG SHARDS RUNS [--cpu] [--models-in-memory N]
# RANKS is the number of ranks per node. The caller defines on_ranks, which runs a command of pneumo_dist on all ranks, and
# on_one_node, which runs any command.
predict_chain() {
  local ranks=$1 config=$2 shards=$3 runs=$4 options=("${@:5}") plan films split
  # One process reports bad input in one line; otherwise every rank would.
  plan=$(on_one_node python -m pneumo_dist predict --dry-run --json --ranks "$ranks" --config "$config" --shards "$shards" \
    --runs "$runs" "${options[@]}") || return
  on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split oof "${options[@]}" || return
  on_ranks tune --config "$config" --runs "$runs" || return
  for split in holdout test; do
    films=$(json_values "films.$split" <<<"$plan") || return
    [[ $films != 0 ]] || continue
    on_ranks predict --config "$config" --shards "$shards" --runs "$runs" --split $split "${options[@]}" || return
    [[ $split == holdout ]] || on_one_node python -m pneumo_dist submit --config "$config" --runs "$runs" || return
  done
  on_one_node python -m pneumo_dist report --config "$config" --shards "$shards" --runs "$runs"
}
