#!/usr/bin/env bash
# Train folds on this node, one after the other, with one rank per GPU. To resume, run the same line again.
#   bash launch/train.sh --config seunet --fold 0 --shards SHARDS --runs RUNS
#   bash launch/train.sh --config seunet --folds all --shards SHARDS --runs RUNS
#   bash launch/train.sh --cpu 2 --config demo --folds 0,1 --shards SHARDS --runs RUNS
#   bash launch/train.sh --fold-per-gpu --config seunet --shards SHARDS --runs RUNS
# On several nodes without SLURM, which share SHARDS and RUNS, one line on each (alpha is the name of the first node):
#   bash launch/train.sh --nodes 2 --node 0 --head alpha:29400 --config … --fold 0 --shards SHARDS --runs RUNS
#   bash launch/train.sh --nodes 2 --node 1 --head alpha:29400 --config … --fold 0 --shards SHARDS --runs RUNS
# Options:
#   --config CONFIG          a YAML file, or the name of a shipped config
#   --shards SHARDS          folder that 'shards build' made
#   --runs RUNS              folder of all runs
#   --fold N, --folds LIST   the fold or folds to train: 0, or 0,2, or all
#   --set KEY=VALUE          override a config key; may be repeated
#   --ranks N                number of GPUs (all)
#   --cpu [N]                train on the CPU with N ranks (1)
#   --fold-per-gpu [A-B]     train fold N on GPU N at the same time, or folds A to B on the first GPUs
#   --max-restarts N         restart all ranks from the newest checkpoint when one dies, at most N times (0)
#   --nodes N, --node I, --head HOST:PORT   number of nodes, this one counted from 0, and where they meet
#   --allow-empty-fold       train even if no film of the fold has a pneumothorax
#   --profile                trace six steps of each stage, for TensorBoard or perfetto
# On a GPU node with several NUMA nodes and numactl, each rank is bound to the CPUs close to its GPU.
# SIGTERM, SIGINT, SIGHUP and SIGUSR1 save a checkpoint and stop. Exit code: 0 done, 2 bad input, 75 stopped (run it again).
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source launch/shell.sh
show_help launch/train.sh "$@"
source launch/common.sh
source launch/numa.sh

need_lines "$@"
mapfile -t gpus < <(visible_gpus)
ranks=$(count_ranks)
arguments=() chosen=()
fold_per_gpu=0 folds=""
restarts=0
device=gpu
nodes=1 node=0 head=""
while (($#)); do
  case $1 in
    --ranks) need_value "$@"; ranks=$2; shift ;;
    --fold-per-gpu)
      fold_per_gpu=1
      [[ ${2:-} =~ ^[0-9]+-[0-9]+$ ]] && { folds=$2; shift; }
      ;;
    --fold | --folds) need_value "$@"; chosen+=("$1" "$2"); shift ;;
    --max-restarts) need_value "$@"; restarts=$2; shift ;;
    --nodes) need_value "$@"; nodes=$2; shift ;;
    --node) need_value "$@"; node=$2; shift ;;
    --head) need_value "$@"; head=$2; shift ;;
    --cpu)
      device=cpu
      arguments+=("$1")
      [[ ${2:-} =~ ^[0-9]+$ ]] && { ranks=$2; shift; }
      ;;
    --fold=* | --folds=* | --ranks=* | --max-restarts=* | --nodes=* | --node=* | --head=* | --cpu=* | --fold-per-gpu=*)
      refuse "$1: write the value after a space"
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
need_number --ranks "$ranks" 1
need_number --max-restarts "$restarts" 0
need_number --nodes "$nodes" 1
need_number --node "$node" 0
((node < nodes)) || refuse "--node $node: nodes are numbered from 0 to $((nodes - 1)) (--nodes $nodes)"
if ((nodes > 1)) && [[ $head != *:* ]]; then
  refuse "--nodes $nodes needs --head HOST:PORT, the name of the first node and a free port on it"
fi

if ((fold_per_gpu)); then
  ((${#chosen[@]} == 0)) || refuse "--fold-per-gpu chooses the folds: write --fold-per-gpu 4-7, without ${chosen[0]}"
  ((nodes == 1)) || refuse "--fold-per-gpu works on one node; run it on each node with different folds"
  [[ $device == cpu || ${#gpus[@]} == 0 ]] || ((ranks <= ${#gpus[@]})) ||
    refuse "--ranks $ranks, but only ${#gpus[@]} GPUs are visible (CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-unset})"
  folds=${folds:-0-$((ranks - 1))}
  first=${folds%-*} last=${folds#*-}
  need_number --fold-per-gpu "$first" 0
  need_number --fold-per-gpu "$last" "$first"
  if ((last - first >= ranks)); then
    refuse "--fold-per-gpu $folds has more folds than the $ranks GPUs of this node; train them in several runs"
  fi
  for ((fold = first; fold <= last; fold++)); do chosen+=(--fold "$fold"); done
fi

((fold_per_gpu || ${#chosen[@]})) || refuse "give --fold N or --folds LIST (see --help)"

stopping=0
trap stopping=1 USR1 TERM INT HUP

# One process reports bad input in one line; otherwise every rank would.
world=$((nodes * ranks))
look=(--dry-run --json --world-size "$world" --ranks "$ranks")
((fold_per_gpu)) && look=(--dry-run --json --world-size 1 --ranks $((last - first + 1)))
((nodes > 1)) && look+=(--head "$head" --node "$node")
plan=$(python -m pneumo_dist train "${arguments[@]}" "${chosen[@]}" "${look[@]}") || exit $?
((stopping)) && exit 75

# Train one fold of the plan on all ranks, with options of train, unless it is trained, and return its exit code.
#   run_fold INDEX RANKS [OPTION …]
run_fold() {
  local index=$1 ranks=$2 options=() under_torchrun train agent workers pause code
  trap stopping=1 USR1 TERM INT HUP  # a subshell does not inherit traps
  begin_fold "$plan" "$index" || return 0
  [[ $device == gpu ]] && read -ra options < <(numa_binding "$ranks")
  ((restarts > 0)) && options+=(--max-restarts "$restarts")
  if ((nodes > 1)); then
    local address
    address=$(json_values local_addr <<<"$plan") || return
    options+=(--nnodes "$nodes" --rdzv-backend c10d --rdzv-id pneumo --rdzv-endpoint "$head" --local-addr "$address"
      --rdzv-conf "is_host=$((node == 0))")
    # When a rank dies, all nodes restart, and each attempt needs its own store.
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
  else
    # Use the loopback address, as this host's name may not resolve.
    options+=(--standalone --local-addr 127.0.0.1)
  fi
  under_torchrun=$((nodes * ranks > 1 || ${#options[@]} > 3))
  train=(python -m pneumo_dist train "${arguments[@]}" "${@:3}")
  ((under_torchrun)) && train=(python -m pneumo_dist.ranks.agent --nproc-per-node "$ranks" \
    --signals-to-handle SIGQUIT "${options[@]}" "${train[@]:1}")

  # SIGUSR1 kills torchrun, and other signals make it kill its workers after 30 s. So it ignores them, and the workers get
  # SIGUSR1 from here. They end if this script is killed.
  local starter=$BASHPID
  (trap '' USR1 TERM INT HUP; PNEUMO_DIST_STARTER=$starter exec "${train[@]}") &
  agent=$!
  while kill -0 "$agent" 2>/dev/null; do
    if ((stopping)); then
      # Repeatedly, as a worker that is still importing ignores the signal.
      workers=("$agent")
      ((under_torchrun)) && read -ra workers < <(cat "/proc/$agent/task/"*/children 2>/dev/null)
      ((${#workers[@]})) && kill -USR1 "${workers[@]}" 2>/dev/null
      sleep 1 &
      pause=$!
      wait -n "$agent" "$pause"
      kill "$pause" 2>/dev/null
    else
      wait "$agent"
    fi
  done
  wait "$agent"
  code=$?
  [[ -e $marker ]] && return 75
  return "$code"
}

if ! ((fold_per_gpu)); then
  mapfile -t numbers < <(json_values "folds.*.fold" <<<"$plan")
  for index in "${!numbers[@]}"; do
    run_fold "$index" "$ranks" --fold "${numbers[index]}" || exit
    ((stopping)) && exit 75
  done
  exit 0
fi

children=()
for ((fold = first; fold <= last; fold++)); do
  (
    ((${#gpus[@]})) && export CUDA_VISIBLE_DEVICES=${gpus[fold - first]}
    run_fold $((fold - first)) 1 --fold "$fold"
  ) &
  children+=($!)
done
trap 'kill -USR1 "${children[@]}" 2>/dev/null' USR1 TERM INT HUP
worst=0
for child in "${children[@]}"; do
  wait_for "$child"
  code=$?
  # A failure takes precedence over a stopped fold, which can resume.
  ((code != 0 && (worst == 0 || worst == 75))) && worst=$code
done
exit "$worst"
