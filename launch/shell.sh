# Sourced by the launchers and the batch scripts: what both need of the shell.
# shellcheck shell=bash

# Print an error, as one line, and end with exit code 2.
refuse() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# End here where an option has no value.
#   need_value OPTION [VALUE …]
need_value() {
  (($# > 1)) || refuse "$1 needs a value (see the first lines of $0)"
}

# End here unless an option's value is a whole number, LEAST or more: arithmetic would run other texts as commands.
#   need_number OPTION VALUE LEAST
need_number() {
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    refuse "$(printf '%s %q: give a whole number from %d on' "$@")"
  fi
}

# End here where an argument holds a line break or another control character: no path may, as logs and lists are lines.
need_lines() {
  local each
  for each; do
    [[ $each != *[[:cntrl:]]* ]] || refuse "$(printf '%q' "$each") holds a line break or another control character"
  done
}

# Forget the ranks of another launcher, which a site or an outer job may have left in the environment.
leave_other_launchers() {
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME
  unset MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS
  unset TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_ERROR_FILE "${!PET_@}"
}

# Run a command where python is; in a job, which has this from slurm/job.sh, on one of its nodes.
on_one_node() { "$@"; }

# Print values of a command's line of JSON on stdin, a line each; a key is a path, as folds.0.folder.
#   json_values KEY…
json_values() {
  on_one_node python -c 'import json, sys
found = json.loads([line for line in sys.stdin if line.startswith("{")][-1])
for path in sys.argv[1:]:
    value = found
    for key in path.split("."):
        value = value[int(key) if isinstance(value, list) else key]
    print(value)' "$@"
}

# Wait for a background command, through the signals that are trapped; return its exit code.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

# Set folder and marker of a fold from the JSON of a dry run of train, and end here where the fold is trained. The marker
# is what a run leaves that a signal stops; one of an earlier run is removed.
#   begin_fold PLAN [PLACE]
begin_fold() {
  local values
  values=$(json_values "folds.${2:-0}.folder" "folds.${2:-0}.is_trained" <<<"$1") || exit
  folder=${values%$'\n'*}
  if [[ ${values##*$'\n'} == True ]]; then
    echo "trained to its end already: $folder"
    exit 0
  fi
  marker=$folder/preempted.json
  rm -f "$marker"
}
