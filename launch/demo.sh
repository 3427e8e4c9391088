#!/usr/bin/env bash
# Run the whole job on synthetic films, on two CPU cores: films, shards, two folds on two ranks each, out-of-fold scores,
# thresholds, a submission and a report. Finished steps are skipped.
#   bash launch/demo.sh             works in demo-run/
#   bash launch/demo.sh FOLDER      works in FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/demo.sh "$@"
source launch/common.sh
out=${1:-demo-run}

printf '\n== 240 training and 40 test films\n'
[[ -e $out/films/train-rle.csv ]] || python -m shards synth "$out/films" --images 240 --size 256 --positive-rate 0.5 --seed 1
[[ -e $out/test-films/train-rle.csv ]] || python -m shards synth "$out/test-films" --images 40 --size 256 --positive-rate 0.5 --seed 2

bash launch/pipeline.sh --cpu 2 --config demo --shards "$out/shards" --runs "$out/runs" --folds 2 -- \
  --dicom "$out/films/dicom-images" --rle "$out/films/train-rle.csv" --test-dicom "$out/test-films/dicom-images" \
  --image-size 128
