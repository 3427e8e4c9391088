#!/usr/bin/env bash
# Run the whole chain on this machine, without SLURM: shards, every fold, predictions, thresholds, submission, report. After
# an interruption, run the same line again: finished steps are skipped.
#   bash launch/pipeline.sh --config seunet --shards SHARDS --runs RUNS --folds 5 -- \
#     --dicom FILMS --rle LABELS.csv --test-dicom TEST_FILMS --image-size 1024 --holdout 0.1
# Options:
#   --config CONFIG          a YAML file, or the name of a shipped config
#   --shards SHARDS          folder of the shards
#   --runs RUNS              folder of all runs
#   --folds N                number of folds (5)
#   --set KEY=VALUE          override a config key; may be repeated
#   --ranks N                number of GPUs (all)
#   --cpu N                  train and predict on the CPU with N ranks
#   --fold-per-gpu           train one fold on each GPU
#   -- OPTIONS…              build the shards with these options of 'python -m shards build'. Without them, the shards
#                            must exist
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/pipeline.sh "$@"
source launch/common.sh

need_lines "$@"
config="" shards="" runs="" folds=5 fold_per_gpu=0
ranks=() device=() sets=()
while (($#)); do
  case $1 in
    --config) need_value "$@"; config=$2; shift ;;
    --shards) need_value "$@"; shards=$2; shift ;;
    --runs) need_value "$@"; runs=$2; shift ;;
    --folds) need_value "$@"; folds=$2; shift ;;
    --cpu) need_value "$@"; ranks=(--cpu "$2") device=(--cpu); shift ;;
    --ranks) need_value "$@"; ranks=(--ranks "$2"); shift ;;
    --set) need_value "$@"; sets+=("$1" "$2"); shift ;;
    --fold-per-gpu) fold_per_gpu=1 ;;
    --) shift; break ;;
    *) refuse "unknown argument $1 (see bash launch/pipeline.sh --help)" ;;
  esac
  shift
done
if [[ -z $config || -z $shards || -z $runs ]]; then
  refuse "--config, --shards and --runs are needed (see bash launch/pipeline.sh --help)"
fi
if [[ ! -e $shards/manifest.json ]] && (($# == 0)); then
  refuse "$shards: no shards there; give the films after --, or the folder of the shards"
fi
need_number --folds "$folds" 1
chosen_config=(--config "$config" "${sets[@]}")
count=$(count_ranks)
((${#ranks[@]} == 0)) || count=${ranks[1]}
need_number "${ranks[0]:---ranks}" "$count" 1
chosen=()
for ((fold = 0; fold < folds; fold++)); do chosen+=(--fold "$fold"); done
world=$((fold_per_gpu ? 1 : count))

# Find bad input before hours of work: in the config, and with options of train also in shards and folds.
look() {
  python -m pneumo_dist train --dry-run --json "${chosen_config[@]}" --runs "$runs" --world-size "$world" \
    --ranks "$count" "${device[@]}" "$@" >/dev/null
}
if [[ -e $shards/manifest.json ]]; then look --shards "$shards" "${chosen[@]}"; else look; fi

started=$SECONDS
step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "shards"
if (($#)); then
  begun=$([[ -e $shards/manifest.json ]] && echo 1 || echo 0)
  python -m shards build "$@" --out "$shards" --folds "$folds"
  ((begun)) || look --shards "$shards" "${chosen[@]}"
else
  echo "$shards: used as they are, as no films were given"
fi

if ((fold_per_gpu)); then
  step "training, one fold on each GPU"
  for ((first = 0; first < folds; first += count)); do
    last=$((first + count < folds ? first + count : folds))
    shielded bash launch/train.sh "${ranks[@]}" --fold-per-gpu "$first-$((last - 1))" "${chosen_config[@]}" \
      --shards "$shards" --runs "$runs"
  done
else
  for ((fold = 0; fold < folds; fold++)); do
    step "training fold $fold"
    shielded bash launch/train.sh "${ranks[@]}" "${chosen_config[@]}" --fold "$fold" --shards "$shards" --runs "$runs"
  done
fi

step "prediction, thresholds, submission, report"
bash launch/predict.sh "${ranks[@]}" "${chosen_config[@]}" --shards "$shards" --runs "$runs"

step "done"
