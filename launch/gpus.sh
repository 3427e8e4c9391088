# Sourced by the launchers: the visible GPUs of this node.
# shellcheck shell=bash

# Print the visible GPUs, one per line, as CUDA_VISIBLE_DEVICES names them: by index or UUID.
visible_gpus() {
  local count names name
  count=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || return 0
  if [[ -z ${CUDA_VISIBLE_DEVICES+set} ]]; then
    seq 0 $((count - 1))
    return
  fi
  IFS=, read -ra names <<<"$CUDA_VISIBLE_DEVICES"
  for name in "${names[@]}"; do
    name=${name//[[:space:]]/}
    # CUDA ignores all names after an invalid one.
    [[ $name =~ ^([0-9]{1,4}|(GPU|MIG)-[A-Za-z0-9/-]+)$ ]] || break
    [[ $name == *-* ]] || ((10#$name < count)) || break
    echo "$name"
  done
}

# Print the default number of ranks on this node: one per GPU, or one without GPUs.
count_ranks() {
  local gpus
  mapfile -t gpus < <(visible_gpus)
  echo $((${#gpus[@]} > 0 ? ${#gpus[@]} : 1))
}
