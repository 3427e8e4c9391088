#!/usr/bin/env bash
# The whole job on synthetic films, on two CPU cores: films, shards, two folds on two ranks each, out-of-fold scores,
# thresholds, a submission and a report. What is finished is not done again.
#   bash launch/demo.sh             works in demo-run/
#   bash launch/demo.sh FOLDER      works in FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.sh
out=${1:-demo-run}
config=configs/demo.yaml
started=$SECONDS

step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - started)); }

step "240 training and 40 test films"
[[ -e $out/films/train-rle.csv ]] || python -m shards synth "$out/films" --images 240 --size 256 --positive-rate 0.5 --seed 1
[[ -e $out/test-films/train-rle.csv ]] || python -m shards synth "$out/test-films" --images 40 --size 256 --positive-rate 0.5 --seed 2

step "shards"
python -m shards build --dicom "$out/films/dicom-images" --rle "$out/films/train-rle.csv" \
  --test-dicom "$out/test-films/dicom-images" --out "$out/shards" --image-size 128 --folds 2

for fold in 0 1; do
  step "training fold $fold on two ranks"
  bash launch/train.sh --ranks 2 --cpu --config $config --fold $fold --shards "$out/shards" --runs "$out/runs"
done

step "prediction, thresholds, submission, report"
bash launch/predict.sh --ranks 2 --cpu --config $config --shards "$out/shards" --runs "$out/runs"

step "done"
