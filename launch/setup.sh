#!/usr/bin/env bash
# Set up a virtual environment in .venv with everything pinned in constraints.txt; reuse it when it is current.
#   bash launch/setup.sh            used by demo.sh and test.sh; needs Debian or Ubuntu with Python >= 3.11
#   PYTHON=python3.12 bash launch/setup.sh      choose the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/setup.sha256
current=$(cat pyproject.toml constraints.txt launch/setup.sh | sha256sum | cut -d' ' -f1)
if [[ -x .venv/bin/python && "$(cat "$stamp" 2>/dev/null)" == "$current" ]]; then
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

# Debian splits ensurepip off into python3-venv.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  package="$(basename "$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}")')")-venv"
  if [[ $EUID -ne 0 ]]; then
    echo "error: Python's venv module is missing; run: sudo apt-get install $package" >&2
    exit 2
  fi
  apt-get update -q && apt-get install -q -y --no-install-recommends "$package"
fi

# DALI is built per CUDA generation; the driver says which one it can run. Without a driver either works on the CPU.
extra=dali-cuda13
if command -v nvidia-smi >/dev/null; then
  cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -n1)
  [[ -n "$cuda" && "$cuda" -lt 13 ]] && extra=dali-cuda12
fi

echo "setting up .venv with $("$python" --version), $extra (several GB, some minutes) ..."
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,$extra]"
echo "$current" >"$stamp"
