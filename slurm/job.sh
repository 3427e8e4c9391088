# Sourced by the batch scripts inside a job: the environment of the site, commands on one node or on all ranks, signals, and
# requeueing.
# shellcheck shell=bash

# A signal may arrive before the job has begun its work. USR1 comes before the time limit (--signal) and, on some sites, on
# preemption; TERM comes on preemption on other sites, and from scancel.
signal="" step=""
trap 'signal=USR1; [[ $step ]] && pass_on' USR1
trap 'signal=TERM; [[ $step ]] && pass_on' TERM

source slurm/site.sh
source launch/shell.sh
need_number PNEUMO_RANKS_PER_NODE "$PNEUMO_RANKS_PER_NODE" 1
need_number PNEUMO_RESTARTS "$PNEUMO_RESTARTS" 0
need_number PNEUMO_IDLE_REQUEUES "$PNEUMO_IDLE_REQUEUES" 1
need_lines "$@"
eval "$PNEUMO_SETUP"
leave_other_launchers
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# srun does not inherit the number from sbatch, and would bind the ranks of a node to one CPU. A node has one task, which
# gets all CPUs of the job there, also if they were asked for by GPU.
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-}}
[[ $cpus ]] && export SRUN_CPUS_PER_TASK=$cpus
unset SLURM_CPUS_PER_GPU
# When a rank dies, all nodes restart, and each attempt needs its own store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
read -ra srun_options <<<"$PNEUMO_SRUN"
read -ra inside <<<"$PNEUMO_EXEC"
# shellcheck disable=SC2034  # for the scripts
world=$((SLURM_NNODES * PNEUMO_RANKS_PER_NODE))

on_one_node() { srun "${srun_options[@]}" --nodes=1 --ntasks=1 "${inside[@]}" "$@"; }

# Run a command of pneumo_dist on the ranks of all nodes. Array tasks may share a node, so each job has its own rendezvous id
# and port: the first free port from a number made of the job's id. On one node, ranks use the loopback address, as the name
# of the node may not resolve. Training handles USR1 and TERM with a checkpoint. torchrun ignores both: USR1 would kill it,
# and TERM would make it kill its workers after 30 s.
on_ranks() {
  local head address port
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
  address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  port=$((20000 + SLURM_JOB_ID % 12000))  # below the ports that hosts give to their own connections
  while (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do port=$((port + 1)); done
  # shellcheck disable=SC2016  # text in single quotes is expanded on each node
  srun "${srun_options[@]}" --kill-on-bad-exit=1 "${inside[@]}" bash -c 'ranks=$1 id=$2 endpoint=$3 restarts=$4
    [[ $5 == train ]] && { trap "" USR1 TERM HUP; handled=SIGINT; }
    source launch/numa.sh
    is_host=$([[ $SLURM_NODEID == 0 ]] && echo 1 || echo 0)
    meeting=(); [[ $SLURM_NNODES == 1 ]] && meeting=(--local-addr=127.0.0.1)
    exec python -m pneumo_dist.ranks.agent --nnodes="$SLURM_NNODES" --nproc-per-node="$ranks" --max-restarts="$restarts" \
      "${meeting[@]}" --rdzv-backend=c10d --rdzv-id="$id" --rdzv-endpoint="$endpoint" --rdzv-conf="is_host=$is_host" \
      --signals-to-handle="${handled:-SIGTERM,SIGINT}" $(numa_binding "$ranks") -m pneumo_dist "${@:5}"' \
    bash "$PNEUMO_RANKS_PER_NODE" "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" "$address:$port" "$PNEUMO_RESTARTS" "$@" &
  step=$!
  [[ $signal ]] && pass_on
  wait_for "$step"
  local code=$?
  step=""
  return "$code"
}

# Send the signal to the steps only; repeatedly, as a rank that is still starting ignores it.
pass_on() {
  while kill -0 "$step" 2>/dev/null; do
    scancel --signal="$signal" "$SLURM_JOB_ID" 2>/dev/null
    sleep 2
  done
}

# Requeue the job, unless it was cancelled. POSITION is a text that changes with progress. A job that was requeued too often
# at one position fails, as it would loop forever. Requeue before the job ends: otherwise its dependents are removed, and
# SLURM requeues a preempted job only if it still runs at the end of the grace time.
#   requeue_from POSITION LOG
requeue_from() {
  [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]] || return 0
  local line="job $SLURM_JOB_ID at $1" log=$2
  echo "$line" >>"$log"
  if (($(tail -n "$PNEUMO_IDLE_REQUEUES" "$log" | grep -cFx "$line") >= PNEUMO_IDLE_REQUEUES)); then
    echo "error: stopped $PNEUMO_IDLE_REQUEUES times at $1 without a step; give the job more time (--time) or an earlier" \
      "signal (--signal), then submit it again" >&2
    return 1
  fi
  echo "stopped at $1, requeued"
  trap - TERM USR1
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
}
