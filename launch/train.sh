#!/usr/bin/env bash
# Train one fold on this node: one rank per GPU, or N ranks on the CPU. Run it again to go on where it stopped.
#   bash launch/train.sh --config configs/seunet.yaml --fold 0 --shards SHARDS --runs RUNS
#   bash launch/train.sh --ranks 2 --cpu --config configs/demo.yaml --fold 0 --shards SHARDS --runs RUNS
# SIGTERM, SIGINT and SIGUSR1 save a checkpoint and stop. Exit code: 0 done, 2 bad input, 75 stopped, run it again.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source launch/common.sh

ranks=$(count_ranks)
arguments=()
while (($#)); do
  case $1 in
    --ranks) ranks=$2; shift ;;
    *) arguments+=("$1") ;;
  esac
  shift
done

# Bad input is found here by one process with one clear line, not by every rank under torchrun.
plan=$(python -m pneumo_dist train "${arguments[@]}" --dry-run --world-size "$ranks") || exit $?
marker="$(sed -n 's/^folder: //p' <<<"$plan")/preempted.json"
rm -f "$marker"

# torchrun dies of SIGUSR1 and kills its workers 30 s after SIGTERM, so it is shielded and the workers get the signal.
train=(python -m pneumo_dist train "${arguments[@]}")
((ranks > 1)) && train=(python -m torch.distributed.run --standalone --nproc-per-node "$ranks" "${train[@]:1}")
(trap '' USR1 TERM INT; exec "${train[@]}") &
agent=$!
# shellcheck disable=SC2329  # the trap calls it
stop() { stopping=1; }
stopping=0
trap stop USR1 TERM INT
while kill -0 "$agent" 2>/dev/null; do
  if ((stopping)); then
    # Again and again, because a worker that is still importing ignores the first.
    workers=("$agent")
    ((ranks > 1)) && read -ra workers < <(cat "/proc/$agent/task/"*/children 2>/dev/null)
    ((${#workers[@]})) && kill -USR1 "${workers[@]}" 2>/dev/null
    sleep 1
  else
    wait "$agent"
  fi
done
wait "$agent"
code=$?
[[ -e $marker ]] && exit 75
exit "$code"
