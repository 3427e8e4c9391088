# Sourced by the launchers and the batch scripts: shared shell functions.
# shellcheck shell=bash

# Print the comment at the top of a script, without its marks, and exit, if an argument before -- is -h or --help.
#   show_help SCRIPT ARGUMENT…
show_help() {
  local script=$1 each
  for each in "${@:2}"; do
    case $each in
      --) return ;;
      -h | --help)
        sed -n '2,/^[^#]/{/^#/!q; s/^# \{0,1\}//p}' "$script"
        exit 0
        ;;
    esac
  done
}

# Print an error on one line and exit with code 2.
refuse() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Exit unless an option has a value.
#   need_value OPTION [VALUE …]
need_value() {
  (($# > 1)) || refuse "$1 needs a value (see --help)"
}

# Exit unless the value of an option is a whole number of at least MINIMUM. Shell arithmetic would run other texts as
# commands.
#   need_number OPTION VALUE MINIMUM
need_number() {
  if [[ ! $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || (($2 < $3)); then
    refuse "$(printf '%s %q: give a whole number of at least %d' "$@")"
  fi
}

# Exit if an argument contains a line break or another control character, which would break logs and lists.
need_lines() {
  local each
  for each; do
    [[ $each != *[[:cntrl:]]* ]] || refuse "$(printf '%q' "$each") contains a line break or another control character"
  done
}

# Unset the variables of another launcher that a site or an outer job may have left in the environment.
leave_other_launchers() {
  unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME
  unset MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS
  unset TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_ERROR_FILE "${!PET_@}"
}

# Run a command where python is. In a job, slurm/job.sh replaces this function, and the command runs on one node.
on_one_node() { "$@"; }

# Print values from a line of JSON on stdin, one per line. A key is a path such as folds.0.folder; folds.*.folder has a value
# for each fold.
#   json_values KEY…
json_values() {
  on_one_node python -c 'import json, sys
content = json.loads([line for line in sys.stdin if line.startswith("{")][-1])
for path in sys.argv[1:]:
    values = [content]
    for key in path.split("."):
        if key == "*":
            values = [each for value in values for each in value]
        else:
            values = [value[int(key) if isinstance(value, list) else key] for value in values]
    print(*values, sep="\n")' "$@"
}

# Wait for a background command, also through trapped signals, and return its exit code.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
  wait "$1"
}

# Set folder and marker of a fold from the JSON of a dry run of train; return 1 if the fold is trained. The marker is the file
# that a run writes when a signal stops it; the marker of an earlier run is removed.
#   begin_fold PLAN [INDEX]
begin_fold() {
  local values
  values=$(json_values "folds.${2:-0}.folder" "folds.${2:-0}.is_trained" <<<"$1") || exit
  folder=${values%$'\n'*}
  if [[ ${values##*$'\n'} == True ]]; then
    echo "already trained: $folder"
    return 1
  fi
  marker=$folder/preempted.json
  rm -f "$marker"
}
