#!/bin/bash
# A search on Slurm: starts Ray on each node of the allocation, and the search on the first node.
#
#   sbatch slurm.sh                                  # a new run
#   sbatch slurm.sh --resume                         # continue the same run after the time limit,
#                                                    # which costs each running trial an epoch
#
# This directory and the environment below must be on a file system that all nodes share.
#SBATCH --job-name=cifar-tune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
# At the end, all Ray processes on these nodes are stopped: no other job of yours may run there.
#SBATCH --exclusive
set -euo pipefail

# The environment in which cifar-tune is installed.
# shellcheck disable=SC1091
source "$HOME/cifar-tune/.venv/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# A port of its own for each job, so that jobs of yours that share a node stay apart.
port=$((6379 + SLURM_JOB_ID % 1000))
# Other users of these nodes do not have this token.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

# Runs the command on the head node once all nodes have joined, and then stops Ray on all nodes. The resources of a node are
# given again: since Slurm 22.05, srun does not inherit --cpus-per-task from above, and Ray would offer all of the machine.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_PER_TASK##*:}" -- \
  cifar-tune search --space wide --name first --address "$head:$port" \
  --storage "$PWD/runs" --data-dir "$PWD/data" "$@"
