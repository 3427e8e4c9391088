# Sourced by the scripts that go from trained folds to a submission, on one machine or under SLURM.
# shellcheck shell=bash

# Write out-of-fold, holdout and test predictions, thresholds, submission.csv and report.html. Finished output is kept.
#   predict_chain RANKS CONFIG SHARDS RUNS [--cpu] [--models-in-memory N] [--set KEY=VALUE …]
# RANKS is the number of ranks per node. The caller defines on_ranks, which runs a command of pneumo_dist on all ranks, and
# on_one_node, which runs any command.
predict_chain() {
  local ranks=$1 shards=$3 runs=$4 chosen=(--config "$2") options=() plan films split
  shift 4
  while (($#)); do
    case $1 in
      --set) need_value "$@"; chosen+=("$1" "$2"); shift ;;
      *) options+=("$1") ;;
    esac
    shift
  done
  # One process reports bad input in one line; otherwise every rank would.
  plan=$(on_one_node python -m pneumo_dist predict --dry-run --json --ranks "$ranks" "${chosen[@]}" --shards "$shards" \
    --runs "$runs" "${options[@]}") || return
  on_ranks predict "${chosen[@]}" --shards "$shards" --runs "$runs" --split oof "${options[@]}" || return
  on_ranks tune "${chosen[@]}" --runs "$runs" || return
  for split in holdout test; do
    films=$(json_values "films.$split" <<<"$plan") || return
    [[ $films != 0 ]] || continue
    on_ranks predict "${chosen[@]}" --shards "$shards" --runs "$runs" --split $split "${options[@]}" || return
    [[ $split == holdout ]] || on_one_node python -m pneumo_dist submit "${chosen[@]}" --runs "$runs" || return
  done
  on_one_node python -m pneumo_dist report "${chosen[@]}" --shards "$shards" --runs "$runs"
}
