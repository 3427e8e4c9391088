# Settings of your site, sourced by every script here. Most sites change the first three lines. The environment overrides
# each of them. docs/cluster.md shows settings for containers.
# shellcheck shell=bash disable=SC2034
PNEUMO_SETUP=${PNEUMO_SETUP:-source .venv/bin/activate}   # in the checkout; or: module load …; conda activate …
PNEUMO_SBATCH=${PNEUMO_SBATCH:-}                          # for every job, such as --partition=gpu --account=radiology
PNEUMO_GPU_SBATCH=${PNEUMO_GPU_SBATCH:---gpus-per-node=1 --cpus-per-gpu=8}   # for jobs that train or predict

PNEUMO_RANKS_PER_NODE=${PNEUMO_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}} # one rank per GPU
PNEUMO_SRUN=${PNEUMO_SRUN:-}                           # for every srun, such as --container-image=… --container-mounts=…
PNEUMO_EXEC=${PNEUMO_EXEC:-}                           # before every command, such as apptainer exec --nv pneumo.sif
PNEUMO_RESTARTS=${PNEUMO_RESTARTS:-2}                  # maximum number of restarts of dead ranks within a job
PNEUMO_IDLE_REQUEUES=${PNEUMO_IDLE_REQUEUES:-3}        # number of requeues without progress that end a job
