# Sourced by the launchers: the GPUs of this node, as far as they may be used.
# shellcheck shell=bash

# Print the GPUs that may be used, a line each, as CUDA_VISIBLE_DEVICES names them: by index or UUID.
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
    # As CUDA does, which takes none that stands after one that is no GPU.
    [[ $name =~ ^([0-9]{1,4}|(GPU|MIG)-[A-Za-z0-9/-]+)$ ]] || break
    [[ $name == *-* ]] || ((10#$name < count)) || break
    echo "$name"
  done
}

# Print how many ranks this node runs, unless it is told: one per GPU, or one.
count_ranks() {
  local gpus
  mapfile -t gpus < <(visible_gpus)
  echo $((${#gpus[@]} > 0 ? ${#gpus[@]} : 1))
}
