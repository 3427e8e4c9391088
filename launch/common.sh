# Sourced by the launchers after launch/shell.sh: the environment, and a wrapper that forwards signals to a command.
# shellcheck shell=bash
bash launch/setup.sh || exit $?
source .venv/bin/activate
source launch/gpus.sh
leave_other_launchers
# Each rank has its own threads; without a limit they would compete for the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Run a command and return its exit code. A signal to this script reaches the command as USR1, on which training saves a
# checkpoint and ends. The command is killed with this script, on systems that have setpriv.
shielded() {
  local bound=()
  if command -v setpriv >/dev/null; then bound=(setpriv --pdeathsig KILL); fi
  "${bound[@]}" "$@" &
  local child=$!
  trap 'kill -USR1 "$child" 2>/dev/null' USR1 TERM INT HUP
  local code=0
  wait_for "$child" || code=$?
  trap - USR1 TERM INT HUP
  return "$code"
}
