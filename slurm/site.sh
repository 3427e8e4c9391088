# The settings of your site, sourced by every batch script. Change these three lines.
# shellcheck shell=bash
PNEUMO_HOME=${PNEUMO_HOME:-$HOME/pneumo_dist}          # the checkout, on a file system that all nodes see
PNEUMO_SETUP=${PNEUMO_SETUP:-"source $PNEUMO_HOME/.venv/bin/activate"}   # or: module load …; conda activate …
PNEUMO_RANKS_PER_NODE=${PNEUMO_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} # one rank per GPU
