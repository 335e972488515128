#!/bin/bash
# A search on Slurm: Ray is started on each node of the allocation, and the search on the first.
#
#   sbatch slurm.sh                                  # a new run
#   sbatch slurm.sh --resume                         # the same run again, after the time limit,
#                                                    # which costs each running trial an epoch
#
# It needs this directory, and the environment below, on a file system that all nodes share.
#SBATCH --job-name=cifar-tune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=8
#SBATCH --cpus-per-task=64
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
# Ray is stopped on these nodes at the end, whosever it is: no other job of yours may run there.
#SBATCH --exclusive
set -euo pipefail

# Where cifar-tune was installed.
# shellcheck disable=SC1091
source "$HOME/cifar-tune/bin/activate"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Jobs of one's own that share a node must not meet.
port=$((6379 + SLURM_JOB_ID % 1000))
# A token that others on these nodes do not have.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

# Runs the command on the head once all nodes have joined, and ends Ray on all nodes after it. What a node has is said
# again: since Slurm 22.05 srun does not take --cpus-per-task from above, and Ray would offer all that the machine has.
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$head:$port" --min-nodes "$SLURM_NNODES" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_PER_TASK##*:}" -- \
  cifar-tune search --space wide --name first --address "$head:$port" \
  --storage "$PWD/runs" --data-dir "$PWD/data" "$@"
