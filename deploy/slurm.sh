#!/usr/bin/env bash
# The network between the nodes must be trusted: whoever can connect to a port of a training can run code as its user.
# deploy/README.md has firewall lines.
#
# Type in the repository's root, on a filesystem that the nodes share:
#     sbatch deploy/slurm.sh -S train.lr=0.0037
#     RESUME=slurm-1234 sbatch deploy/slurm.sh -S train.lr=0.0037  # go on with job 1234, which failed
#SBATCH --job-name=bintally
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1  # torchrun starts the ranks
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180    # at the tasks, three minutes before the time is up; preemption sends the same
#SBATCH --requeue            # also after the loss of a node
#SBATCH --open-mode=append   # one log through all restarts
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # Slurm runs a copy of this file elsewhere

export NAME=${RESUME:-slurm-$SLURM_JOB_ID} # a requeued job keeps its number
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export NODES=$SLURM_JOB_NUM_NODES RANKS=${SLURM_GPUS_ON_NODE:-1}
export ENDPOINT=$first:$((20000 + SLURM_JOB_ID % 10000)) # two jobs may meet on one node
export CLONES=$PWD/.bintally/slurm/$NAME CACHE=$PWD/.dvc/cache

# One failed task must not end the others: they are saving. srun no longer takes over --cpus-per-task by itself.
code=0
# shellcheck disable=SC2016 # these are for each node to fill in
srun --kill-on-bad-exit=0 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    bash -c 'NODE=$SLURM_NODEID CLONE=$CLONES/$SLURM_NODEID exec deploy/node.sh "$@"' node.sh "$@" || code=$?
case $code in
    0) rm -rf "$CLONES" ;;                      # what it came to is in the experiment and the cache
    143) exec scontrol requeue "$SLURM_JOB_ID" ;; # saved; Slurm by itself requeues only what it has to end
esac
exit "$code"
