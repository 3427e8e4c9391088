# Sourced by the scripts that start torchrun: binds each rank to the CPUs close to its GPU.
# shellcheck shell=bash
source launch/gpus.sh

# Print torchrun's option for RANKS ranks on this node, or nothing if it would not help or not work. It needs a GPU for
# each rank, numactl, more than one NUMA node with CPUs, and all CPUs of the node: a job with some of them may have none
# close to its GPU, and SLURM binds such a job itself.
#   numa_binding RANKS [SYSFS] [STATUS]
numa_binding() {
  local ranks=$1 sysfs=${2:-/sys} status=${3:-/proc/self/status} nodes gpus
  nodes=$(cat "$sysfs/devices/system/node/has_cpu" 2>/dev/null)
  mapfile -t gpus < <(visible_gpus)
  [[ $nodes == *[-,]* ]] && ((${#gpus[@]} >= ranks)) && command -v numactl >/dev/null || return 0
  [[ $(sed -n 's/^Cpus_allowed_list:\s*//p' "$status") == "$(cat "$sysfs/devices/system/cpu/online")" ]] || return 0
  echo --numa-binding=node
}
