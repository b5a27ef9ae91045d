#!/bin/bash
#SBATCH --job-name=keras-tlgc
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#
# One process on each host, for `sbatch examples/containers/slurm.sh` from the
# root of the repository, in the environment of the backend that KERAS_BACKEND
# names. CHECKPOINT must be a file that all hosts reach.
set -euo pipefail
# Unlike `head`, `sed` reads all of the list, so that no pipe breaks.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export COORDINATOR=$first:9876 CHECKPOINT=${CHECKPOINT:-$PWD/run.weights.h5}
# If a process fails, SLURM ends the others.
srun --kill-on-bad-exit=1 bash -c 'exec python examples/multi_host.py \
  --coordinator "$COORDINATOR" --checkpoint "$CHECKPOINT" \
  --processes "$SLURM_NTASKS" --process-id "$SLURM_PROCID"'
