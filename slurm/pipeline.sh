#!/usr/bin/env bash
# Submit the whole chain: shards, one training task per fold, predictions, thresholds, submission, report. Each job waits for
# the previous one, and is removed if that fails. After an interruption, run the same line again: finished steps are
# skipped, and queued jobs are not submitted twice.
#   bash slurm/pipeline.sh --config seunet --shards SHARDS --runs RUNS --folds 5 -- \
#     --dicom FILMS --rle LABELS.csv --test-dicom TEST_FILMS --image-size 1024 --holdout 0.1
# Options:
#   --config CONFIG          a YAML file, or the name of a shipped config; may be repeated: one array then trains all folds
#                            of all experiments, and each experiment is predicted once its own folds are trained
#   --shards SHARDS          folder of the shards
#   --runs RUNS              folder of all runs
#   --folds N                number of folds (5)
#   --set KEY=VALUE          override a config key, in every config; may be repeated
#   --at-a-time K            number of folds that train at a time, of all experiments together (all)
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
shards="" runs="" folds=5 at_a_time="" nodes=1 tasks=4
configs=() device=() sets=()
while (($#)); do
  case $1 in
    --config) need_value "$@"; configs+=("$2"); shift ;;
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
if ((${#configs[@]} == 0)) || [[ -z $shards || -z $runs ]]; then
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

# Read before the folds are checked: a task that ends meanwhile is then found in the queue, not missing.
queue=$(squeue --me --noheader --array --format='%i %j' || true)

# Report bad input now rather than in the queue, if this machine can check it: each config, and once the shards exist, every
# fold. Trained folds are skipped. Each of these has an entry for each config.
names=() digests=() trained=()
short() { sha256sum <<<"$1" | cut -c1-8; }
add_experiment() {
  local name=${1//[^A-Za-z0-9_-]/-}
  [[ " ${names[*]} " != *" $name "* ]] || refuse "$name: two configs have this name, and would train in one folder"
  # The name of a job identifies its work, so that a second run of this script finds the job.
  names+=("$name") digests+=("$(short "$2 $runs")") trained+=("$3")
}
if [[ -z $PNEUMO_SRUN$PNEUMO_EXEC ]]; then
  eval "$PNEUMO_SETUP"
  look=("${sets[@]}" --runs "$runs" "${device[@]}")
  keys=(experiment config)
  if [[ -e $shards/manifest.json ]]; then
    look+=(--shards "$shards")
    for ((fold = 0; fold < folds; fold++)); do
      look+=(--fold "$fold")
      keys+=("folds.$fold.is_trained")
    done
  fi
  code=0
  for config in "${configs[@]}"; do
    plan=$(python -m pneumo_dist train --dry-run --json --config "$config" "${look[@]}") || { code=$?; continue; }
    mapfile -t found < <(json_values "${keys[@]}" <<<"$plan")
    done_folds=""
    for ((fold = 0; fold < ${#found[@]} - 2; fold++)); do
      [[ ${found[fold + 2]} == True ]] && done_folds+=" $fold"
    done
    add_experiment "${found[0]}" "${found[1]:0:8}" "$done_folds"
  done
  ((code == 0)) || exit "$code"
else
  for config in "${configs[@]}"; do
    file=$config
    [[ -e $file ]] || file=configs/$config.yaml
    [[ -r $file ]] || refuse "$config: no such config"
    add_experiment "$(basename "${file%.*}")" "$({ cat "$file"; printf '%s\n' "${sets[@]}"; } | sha256sum)" ""
  done
fi
mkdir -p "$runs/slurm"

prepare=pneumo-prepare-$(short "$shards")
finalize=pneumo-finalize-$(short "$shards")

# Print the ids of pending and running jobs with a name, with each task of an array separately.
queued() { awk -v name="$1" '$2 == name { print $1 }' <<<"$queue" | xargs; }
# Print the ids of the pending and running tasks that train an experiment, with their folds. A job that trains several
# experiments has the digests of all in its name, and task N trains fold N % folds of experiment N / folds.
#   training_of NAME DIGEST
training_of() {
  local id job task each
  while read -r id job; do
    task=${id##*_}
    if [[ $job == "pneumo-train-$1-$2" ]]; then
      echo "$id $task"
    elif [[ $job =~ ^pneumo-trains-([0-9]+)-([0-9a-f-]+)$ ]]; then
      IFS=- read -ra each <<<"${BASH_REMATCH[2]}"
      [[ ${each[task / BASH_REMATCH[1]]:-} == "$2" ]] && echo "$id $((task % BASH_REMATCH[1]))"
    fi
  done <<<"$queue"
  return 0
}
# Submit a job that waits for the jobs in a list, and print its id.
#   submit NAME "IDS" OPTIONS… SCRIPT ARGUMENTS…
submit() {
  local name=$1 dependency=() ids
  ids=$(xargs <<<"$2")
  [[ $ids ]] && dependency=("--dependency=afterok:${ids// /:}" --kill-on-invalid-dep=yes)
  sbatch --parsable --job-name="$name" "${dependency[@]}" "${everywhere[@]}" "${@:3}" | cut -d';' -f1
}

before="" all="" training=()
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

# Tasks of the array: those of an experiment follow those of the one before it.
array=() added=()
for index in "${!names[@]}"; do
  waiting=$(training_of "${names[index]}" "${digests[index]}")
  training[index]=$(cut -d' ' -f1 <<<"$waiting" | xargs)
  running=" $(cut -d' ' -f2 <<<"$waiting" | xargs) "
  missing=()
  for ((fold = 0; fold < folds; fold++)); do
    [[ "${trained[index]} " == *" $fold "* || $running == *" $fold "* ]] || missing+=("$fold")
  done
  added[index]=${missing[*]}
  for fold in "${missing[@]}"; do array+=($((index * folds + fold))); done
done
if ((${#array[@]})); then
  tasks_at_once=$(IFS=,; echo "${array[*]}")${at_a_time:+%$at_a_time}
  chosen=()
  for config in "${configs[@]}"; do chosen+=(--config "$config"); done
  name=pneumo-train-${names[0]}-${digests[0]}
  if ((${#configs[@]} > 1)); then
    name=pneumo-trains-$folds-$(IFS=-; echo "${digests[*]}")
    chosen=(--folds-each "$folds" "${chosen[@]}")
  fi
  job=$(submit "$name" "$before" --array="$tasks_at_once" --nodes="$nodes" "${with_gpus[@]}" \
    --output="$runs/slurm/train-%A_%a.out" \
    slurm/train_folds.sbatch "${chosen[@]}" "${sets[@]}" --shards "$shards" --runs "$runs" "${device[@]}")
fi
for index in "${!names[@]}"; do
  of="" ids=${training[index]}
  ((${#names[@]} == 1)) || of=" of ${names[index]}"
  [[ ${trained[index]} ]] && echo "training      folds${trained[index]}$of are trained"
  [[ $ids ]] && echo "training      jobs $ids$of, already in the queue"
  all="$all $ids"
  if [[ ${added[index]} ]]; then
    echo "training      job $job, folds ${added[index]}$of"
    if ((${#names[@]} == 1)); then
      ids="$ids $job"
    else
      for fold in ${added[index]}; do ids="$ids ${job}_$((index * folds + fold))"; done
    fi
  fi
  training[index]=$ids
done
((${#array[@]} == 0)) || all="$all $job"

for index in "${!names[@]}"; do
  of=""
  ((${#names[@]} == 1)) || of=" of ${names[index]}"
  predict=pneumo-predict-${names[index]}-${digests[index]}
  job=$(queued "$predict")
  if [[ $job ]]; then
    echo "prediction    job $job$of, already in the queue"
  else
    job=$(submit "$predict" "${training[index]}" --nodes="$nodes" "${with_gpus[@]}" \
      --output="$runs/slurm/predict-%j.out" \
      slurm/predict.sbatch "${configs[index]}" "$shards" "$runs" "${device[@]}" "${sets[@]}")
    echo "prediction    job $job$of, which ends with submission.csv and report.html"
  fi
  all="$all $job"
done

cat <<END

watch:   squeue --me
         tail -f $runs/slurm/*.out
         python -m pneumo_dist status $runs
         bash launch/monitor.sh $runs
stop:    scancel $(xargs <<<"$all")
END
