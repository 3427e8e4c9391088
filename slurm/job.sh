# Sourced by the batch scripts inside a job: the site's environment, one command on one node or on the ranks of all of
# them, signals, and the way back into the queue.
# shellcheck shell=bash

# A job may be told to stop before it has begun. USR1 comes before its time limit (--signal) and, on some sites, with
# preemption; TERM with preemption on the others, and with scancel.
told="" step=""
trap 'told=USR1; [[ $step ]] && pass_on' USR1
trap 'told=TERM; [[ $step ]] && pass_on' TERM

source slurm/site.sh
source launch/shell.sh
need_number PNEUMO_RANKS_PER_NODE "$PNEUMO_RANKS_PER_NODE" 1
need_number PNEUMO_RESTARTS "$PNEUMO_RESTARTS" 0
need_number PNEUMO_IDLE_REQUEUES "$PNEUMO_IDLE_REQUEUES" 1
need_lines "$@"
eval "$PNEUMO_SETUP"
leave_other_launchers
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# srun does not take this over from sbatch by itself, and would bind each node's ranks to one CPU.
[[ ${SLURM_CPUS_PER_TASK:-} ]] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# A rank that dies is started again on all nodes: each attempt needs a store of its own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
read -ra srun_options <<<"$PNEUMO_SRUN"
read -ra inside <<<"$PNEUMO_EXEC"
# shellcheck disable=SC2034  # for the scripts
world=$((SLURM_NNODES * PNEUMO_RANKS_PER_NODE))

on_one_node() { srun "${srun_options[@]}" --nodes=1 --ntasks=1 "${inside[@]}" "$@"; }

# Run a command of pneumo_dist on the ranks of all nodes. Array tasks may share a node, so each job has its own
# rendezvous id and port, the first from one made of its id on that nobody listens to. On one node the ranks meet at the
# loopback address, as its name may have none. Training answers USR1 and TERM itself, with a checkpoint; torchrun, which
# would die of the one and kill its workers 30 s after the other, is shielded from both.
on_ranks() {
  local head address port
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
  address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
  port=$((20000 + SLURM_JOB_ID % 20000))
  while (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do port=$((port + 1)); done
  # shellcheck disable=SC2016  # what stands in single quotes is expanded on each node
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
  [[ $told ]] && pass_on
  wait_for "$step"
  local code=$?
  step=""
  return "$code"
}

# To the steps alone; again and again, because a rank that is still starting would not hear of it.
pass_on() {
  while kill -0 "$step" 2>/dev/null; do
    scancel --signal="$told" "$SLURM_JOB_ID" 2>/dev/null
    sleep 2
  done
}

# Put the job back into the queue from a place, a text that changes with progress; leave a cancelled one be. Where it has
# come back to one place too often, fail: it would go round for ever. It must happen before the job ends, or its dependents
# die; SLURM itself requeues what it preempts only where that is still there at the end of the grace time.
#   requeue_from PLACE LOG
requeue_from() {
  [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]] || return 0
  local line="job $SLURM_JOB_ID at $1" log=$2
  echo "$line" >>"$log"
  if (($(tail -n "$PNEUMO_IDLE_REQUEUES" "$log" | grep -cFx "$line") >= PNEUMO_IDLE_REQUEUES)); then
    echo "error: stopped $PNEUMO_IDLE_REQUEUES times at $1 without a step; give the job more time (--time) or an earlier" \
      "signal (--signal), then submit it again" >&2
    return 1
  fi
  echo "stopped at $1, back into the queue"
  trap - TERM USR1
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
}
