#!/usr/bin/env bash
# Run the whole chain on this machine, without SLURM: shards, every fold, predictions, thresholds, submission, report. After
# an interruption, run the same line again: finished steps are skipped.
#   bash launch/pipeline.sh --config seunet --shards SHARDS --runs RUNS --folds 5 -- \
#     --dicom FILMS --rle LABELS.csv --test-dicom TEST_FILMS --image-size 1024 --holdout 0.1
# Arguments after -- go to 'python -m shards build'. Without them, the shards must exist.
# --cpu N trains with N ranks on the CPU, --ranks N on N GPUs (default: all), --fold-per-gpu trains one fold on each GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

need_lines "$@"
config="" shards="" runs="" folds=5 fold_per_gpu=0
ranks=() device=()
while (($#)); do
  case $1 in
    --config) need_value "$@"; config=$2; shift ;;
    --shards) need_value "$@"; shards=$2; shift ;;
    --runs) need_value "$@"; runs=$2; shift ;;
    --folds) need_value "$@"; folds=$2; shift ;;
    --cpu) need_value "$@"; ranks=(--cpu "$2") device=(--cpu); shift ;;
    --ranks) need_value "$@"; ranks=(--ranks "$2"); shift ;;
    --fold-per-gpu) fold_per_gpu=1 ;;
    --) shift; break ;;
    *) refuse "unknown argument $1 (see the first lines of launch/pipeline.sh)" ;;
  esac
  shift
done
if [[ -z $config || -z $shards || -z $runs ]]; then
  refuse "--config, --shards and --runs are needed (see the first lines of launch/pipeline.sh)"
fi
if [[ ! -e $shards/manifest.json ]] && (($# == 0)); then
  refuse "$shards: no shards there; give the films after --, or the folder of the shards"
fi
need_number --folds "$folds" 1
count=$(count_ranks)
((${#ranks[@]} == 0)) || count=${ranks[1]}
need_number "${ranks[0]:---ranks}" "$count" 1
chosen=()
for ((fold = 0; fold < folds; fold++)); do chosen+=(--fold "$fold"); done
world=$((fold_per_gpu ? 1 : count))

# Find bad input before hours of work: in the config, and with options of train also in shards and folds.
look() {
  python -m pneumo_dist train --dry-run --json --config "$config" --runs "$runs" --world-size "$world" \
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
    shielded bash launch/train.sh "${ranks[@]}" --fold-per-gpu "$first-$((last - 1))" --config "$config" \
      --shards "$shards" --runs "$runs"
  done
else
  for ((fold = 0; fold < folds; fold++)); do
    step "training fold $fold"
    shielded bash launch/train.sh "${ranks[@]}" --config "$config" --fold "$fold" --shards "$shards" --runs "$runs"
  done
fi

step "prediction, thresholds, submission, report"
bash launch/predict.sh "${ranks[@]}" --config "$config" --shards "$shards" --runs "$runs"

step "done"
