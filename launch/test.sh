#!/usr/bin/env bash
# Set up the environment, then run the style checks and the quick tests.
#   bash launch/test.sh             all quick tests
#   bash launch/test.sh -k rle      arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/shell.sh
show_help launch/test.sh "$@"
bash launch/setup.sh
source .venv/bin/activate
ruff format --check .
ruff check .
mypy
lint-imports
shellcheck launch/*.sh slurm/*.sh slurm/*.sbatch .ci/run
export OMP_NUM_THREADS=1
# Many tests wait for processes, so three files run at once on two cores. --dist loadfile: each file runs in one worker,
# so that its fixtures are made once.
python -m pytest -q -m "not slow and not slurm" -n 3 --dist loadfile "$@"
