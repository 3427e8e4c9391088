#!/usr/bin/env bash
# The whole chain on this machine, without SLURM: shards, every fold, predictions, thresholds, submission, report. Run the
# same line again after anything: what is finished is not done again.
#   bash launch/pipeline.sh --config configs/seunet.yaml --shards SHARDS --runs RUNS --folds 5 -- \
#     --dicom FILMS --rle LABELS.csv --test-dicom TEST_FILMS --image-size 1024 --holdout 0.1
# What stands after -- goes to 'python -m shards build'; without it the shards must stand.
# --cpu N trains with N ranks on the CPU, --ranks N on N GPUs (all of them otherwise), --fold-per-gpu one fold on each.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh

config="" shards="" runs="" folds=5 fold_per_gpu=0
ranks=()
while (($#)); do
  case $1 in
    --config) config=$2; shift ;;
    --shards) shards=$2; shift ;;
    --runs) runs=$2; shift ;;
    --folds) folds=$2; shift ;;
    --cpu) ranks=(--cpu "$2"); shift ;;
    --ranks) ranks=(--ranks "$2"); shift ;;
    --fold-per-gpu) fold_per_gpu=1 ;;
    --) shift; break ;;
    *) echo "error: unknown argument $1 (see the first lines of launch/pipeline.sh)" >&2; exit 2 ;;
  esac
  shift
done
if [[ -z $config || -z $shards || -z $runs ]]; then
  echo "error: --config, --shards and --runs are needed (see the first lines of launch/pipeline.sh)" >&2
  exit 2
fi
started=$SECONDS
step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "shards"
if (($#)); then
  python -m shards build "$@" --out "$shards" --folds "$folds"
else
  echo "$shards: taken as they stand, no films were named"
fi

if ((fold_per_gpu)); then
  step "training, one fold on each GPU"
  gpus=$(count_ranks)
  for ((first = 0; first < folds; first += gpus)); do
    last=$((first + gpus < folds ? first + gpus : folds))
    shielded bash launch/train.sh --fold-per-gpu "$first-$((last - 1))" --config "$config" --shards "$shards" --runs "$runs"
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
