# Sourced by the launchers and the batch scripts: what both need of the shell.
# shellcheck shell=bash

# Wait for a background command, through the signals that are trapped; return its exit code.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

# Set folder and marker from what a dry run of train printed, and end here where the fold is trained. The marker is what a
# run leaves that a signal stops; one of an earlier run is removed.
begin_fold() {
  folder=$(sed -n 's/^folder: //p' <<<"$1")
  if grep -q '^state: done$' <<<"$1"; then
    echo "trained to its end already: $folder"
    exit 0
  fi
  marker=$folder/preempted.json
  rm -f "$marker"
}
