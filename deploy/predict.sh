#!/usr/bin/env bash
# Slurm: score a bucket of photographs on sixteen nodes. Type in the repository's root, on a filesystem that they share:
#     sbatch deploy/predict.sh s3://BUCKET/PREFIX --to exports/counts
# A job that failed or was ended is asked for again, by its number in the array, and continues:
#     sbatch --array=4 deploy/predict.sh s3://BUCKET/PREFIX --to exports/counts
#SBATCH --job-name=bintally-predict
#SBATCH --array=1-16
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue # after the loss of a node
set -euo pipefail
cd "$SLURM_SUBMIT_DIR" # Slurm runs a copy of this file elsewhere

exec .venv/bin/bintally predict "$@" --part "$SLURM_ARRAY_TASK_ID/16"
