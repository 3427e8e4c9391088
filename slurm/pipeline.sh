#!/usr/bin/env bash
# Submit the whole chain: shards, one training task per fold, predictions, thresholds, submission, report. Each job waits for
# the previous one, and is removed if that fails. After an interruption, run the same line again: finished steps are
# skipped, and queued jobs are not submitted twice.
#   bash slurm/pipeline.sh --config seunet --shards SHARDS --runs RUNS --folds 5 -- \
#     --dicom FILMS --rle LABELS.csv --test-dicom TEST_FILMS --image-size 1024 --holdout 0.1
# Options:
#   --config CONFIG          a YAML file, or the name of a shipped config
#   --shards SHARDS          folder of the shards
#   --runs RUNS              folder of all runs
#   --folds N                number of folds (5)
#   --set KEY=VALUE          override a config key; may be repeated
#   --at-a-time K            number of folds that train at a time (all)
#   --nodes N                nodes for each fold (1)
#   --build-tasks N          number of build tasks (4)
#   --cpu                    train and predict without GPUs
#   -- OPTIONS…              build the shards with these options of 'python -m shards build'. Without them, the shards
#                            must exist
# Set partition, account, GPUs, modules and containers in slurm/site.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help slurm/pipeline.sh "$@"
export PNEUMO_HOME=${PNEUMO_HOME:-$PWD}
source slurm/site.sh

need_lines "$@"
config="" shards="" runs="" folds=5 at_a_time="" nodes=1 tasks=4
device=() sets=()
while (($#)); do
  case $1 in
    --config) need_value "$@"; config=$2; shift ;;
    --shards) need_value "$@"; shards=$2; shift ;;
    --runs) need_value "$@"; runs=$2; shift ;;
    --folds) need_value "$@"; folds=$2; shift ;;
    --at-a-time) need_value "$@"; at_a_time=$2; shift ;;
    --nodes) need_value "$@"; nodes=$2; shift ;;
    --build-tasks) need_value "$@"; tasks=$2; shift ;;
    --set) need_value "$@"; sets+=("$1" "$2"); shift ;;
    --cpu) device=(--cpu) ;;
    --) shift; break ;;
    *) refuse "unknown argument $1 (see bash slurm/pipeline.sh --help)" ;;
  esac
  shift
done
if [[ -z $config || -z $shards || -z $runs ]]; then
  refuse "--config, --shards and --runs are needed (see bash slurm/pipeline.sh --help)"
fi
if [[ ! -e $shards/manifest.json ]] && (($# == 0)); then
  refuse "$shards: no shards there; give the films after --, or the folder of the shards"
fi
need_number --folds "$folds" 1
[[ -z $at_a_time ]] || need_number --at-a-time "$at_a_time" 1
need_number --nodes "$nodes" 1
need_number --build-tasks "$tasks" 1
shards=$(realpath -m "$shards") runs=$(realpath -m "$runs")
read -ra everywhere <<<"$PNEUMO_SBATCH"
read -ra with_gpus <<<"$PNEUMO_GPU_SBATCH"

# Report bad input now rather than in the queue, if this machine can check it: the config, and once the shards exist, every
# fold. Trained folds are skipped.
trained=""
if [[ -z $PNEUMO_SRUN$PNEUMO_EXEC ]]; then
  eval "$PNEUMO_SETUP"
  look=(--config "$config" "${sets[@]}" --runs "$runs" "${device[@]}")
  keys=(experiment config)
  if [[ -e $shards/manifest.json ]]; then
    look+=(--shards "$shards")
    for ((fold = 0; fold < folds; fold++)); do
      look+=(--fold "$fold")
      keys+=("folds.$fold.is_trained")
    done
  fi
  plan=$(python -m pneumo_dist train --dry-run --json "${look[@]}") || exit $?
  mapfile -t found < <(json_values "${keys[@]}" <<<"$plan")
  name=${found[0]} digest=${found[1]:0:8}
  for ((fold = 0; fold < ${#found[@]} - 2; fold++)); do
    [[ ${found[fold + 2]} == True ]] && trained+=" $fold"
  done
else
  file=$config
  [[ -e $file ]] || file=configs/$config.yaml
  [[ -r $file ]] || refuse "$config: no such config"
  name=$(basename "${file%.*}") digest=$({ cat "$file"; printf '%s\n' "${sets[@]}"; } | sha256sum)
fi
mkdir -p "$runs/slurm"

# The name of a job identifies its work, so that a second run of this script finds the job.
short() { sha256sum <<<"$1" | cut -c1-8; }
name=${name//[^A-Za-z0-9_-]/-}
prepare=pneumo-prepare-$(short "$shards")
finalize=pneumo-finalize-$(short "$shards")
train=pneumo-train-$name-$(short "$digest $runs")
predict=pneumo-predict-$name-$(short "$digest $runs")

# Print the ids of pending and running jobs with a name, with each task of an array separately.
queued() { squeue --me --noheader --array --format=%i --name="$1" | xargs; }
# Submit a job that waits for the jobs in a list, and print its id.
#   submit NAME "IDS" OPTIONS… SCRIPT ARGUMENTS…
submit() {
  local name=$1 dependency=() ids
  ids=$(xargs <<<"$2")
  [[ $ids ]] && dependency=("--dependency=afterok:${ids// /:}" --kill-on-invalid-dep=yes)
  sbatch --parsable --job-name="$name" "${dependency[@]}" "${everywhere[@]}" "${@:3}" | cut -d';' -f1
}

before="" all=""
if [[ -e $shards/manifest.json ]]; then
  echo "shards        $shards exists"
elif before=$(queued "$finalize") && [[ $before ]]; then
  echo "shards        job $before, already in the queue"
else
  build=(slurm/prepare.sbatch "$@" --out "$shards" --folds "$folds")
  parts=$(submit "$prepare" "" --array="1-$tasks" --output="$runs/slurm/prepare-%A_%a.out" "${build[@]}")
  before=$(submit "$finalize" "$parts" --output="$runs/slurm/finalize-%j.out" "${build[@]}")
  echo "shards        job $parts, $tasks tasks, and $before, which joins them"
  all="$parts"
fi
all="$all $before"

training=$(queued "$train")
missing=()
for ((fold = 0; fold < folds; fold++)); do
  [[ "$trained " == *" $fold "* || "$training " == *"_$fold "* ]] || missing+=("$fold")
done
[[ $trained ]] && echo "training      folds$trained are trained"
[[ $training ]] && echo "training      jobs $training, already in the queue"
if ((${#missing[@]})); then
  array=$(IFS=,; echo "${missing[*]}")${at_a_time:+%$at_a_time}
  job=$(submit "$train" "$before" --array="$array" --nodes="$nodes" "${with_gpus[@]}" \
    --output="$runs/slurm/train-%A_%a.out" \
    slurm/train_folds.sbatch --config "$config" "${sets[@]}" --shards "$shards" --runs "$runs" "${device[@]}")
  echo "training      job $job, folds ${missing[*]}"
  training="$training $job"
fi
all="$all $training"

job=$(queued "$predict")
if [[ $job ]]; then
  echo "prediction    job $job, already in the queue"
else
  job=$(submit "$predict" "$training" --nodes="$nodes" "${with_gpus[@]}" --output="$runs/slurm/predict-%j.out" \
    slurm/predict.sbatch "$config" "$shards" "$runs" "${device[@]}" "${sets[@]}")
  echo "prediction    job $job, which ends with submission.csv and report.html"
fi

cat <<END

watch:   squeue --me
         tail -f $runs/slurm/*.out
         python -m pneumo_dist status $runs
         bash launch/monitor.sh $runs
stop:    scancel $(xargs <<<"$all $job")
END
