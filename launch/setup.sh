#!/usr/bin/env bash
# Set up a virtual environment in .venv with the pins of constraints.txt. An up-to-date one is reused.
#   bash launch/setup.sh                        needs Python >= 3.11, on Debian or Ubuntu; the other scripts call it
#   PYTHON=python3.12 bash launch/setup.sh      choose the interpreter
#   EXTRA=dali-cuda12 bash launch/setup.sh      choose the DALI on a login node without a GPU: dali-cuda12 or dali-cuda13
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/setup.sh "$@"

stamp=.venv/setup.sha256
current=$(cat pyproject.toml constraints.txt launch/setup.sh launch/driver.sh | sha256sum | cut -d' ' -f1)
read -r installed installed_extra < <(cat "$stamp" 2>/dev/null) || true
source launch/driver.sh
check_extra "${EXTRA:-}"
if [[ -x .venv/bin/python && $installed == "$current" && ${EXTRA:-$installed_extra} == "$installed_extra" ]]; then
  exit 0
fi

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python >= 3.11 found; install python3 (apt-get install python3) or set PYTHON" >&2
  exit 2
}
python=$(find_python)

# On Debian, ensurepip is in the package python3-venv.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  package="$(basename "$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}")')")-venv"
  if [[ $EUID -ne 0 ]]; then
    echo "error: Python's venv module is missing; run: sudo apt-get install $package" >&2
    exit 2
  fi
  apt-get update -q && apt-get install -q -y --no-install-recommends "$package"
fi

driver=$(driver_version)
extra=${EXTRA:-$(dali_extra "$driver")}
pins=constraints.txt
site=()
if [[ -n $driver ]] && has_site_torch "$python"; then
  # The torch of a GPU machine fits its driver. It is kept, and its libraries are not pinned.
  site=(--system-site-packages)
  pins=.venv/constraints.txt
elif [[ -n $driver && $extra == dali-cuda12 ]]; then
  echo "warning: driver $driver runs CUDA 12, the pinned torch needs CUDA 13 and will not see the GPU; install a torch >= 2.11" \
    "for CUDA 12 into a Python and run: PYTHON=THAT_PYTHON bash launch/setup.sh (see docs/gpu.md)" >&2
fi

echo "setting up .venv with $("$python" --version), $extra${site[0]:+, the torch of this machine} (several GB, some minutes) ..."
# Two DALIs in one environment would overwrite each other's files.
[[ ${installed_extra:-$extra} == "$extra" ]] || rm -rf .venv
if [[ ! -x .venv/bin/python || ${#site[@]} -gt 0 ]]; then
  "$python" -m venv "${site[@]}" .venv
fi
[[ $pins == constraints.txt ]] || without_torch constraints.txt >"$pins"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$pins" -e ".[dev,$extra]"
echo "$current $extra" >"$stamp"
