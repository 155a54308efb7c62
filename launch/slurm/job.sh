#!/usr/bin/env bash
# A batch script of Slurm: one task a node, which train together; JAX finds their coordinator by itself.
#   sbatch --nodes=2 launch/slurm/job.sh launch/train.py --config=... --workdir=...
#   bash launch/slurm/job.sh --dry_run launch/train.py --config=... --workdir=...      prints what would run, and runs nothing
#SBATCH --job-name=covidjax
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -uo pipefail
if [ $# -eq 0 ] || [ "$*" = --dry_run ]; then
    echo "error: there is no script: write sbatch --nodes=2 launch/slurm/job.sh launch/train.py --config=... --workdir=..." >&2
    exit 2
fi
command=(srun --label ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} python -u)
if [ "${1:-}" = --dry_run ]; then
    shift
    grep '^#SBATCH ' "$0"
    printf '%q ' "${command[@]}" "$@"
    echo
    exit
fi
if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then # JAX would give a task one GPU; this one has those of its node
    JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((SLURM_GPUS_ON_NODE - 1)))
    export JAX_LOCAL_DEVICE_IDS
fi
"${command[@]}" "$@"
status=$?
# 143: saved after SIGTERM, as the time is over; 75: another process was lost. Both go on with the same command. A job that was
# cancelled no longer runs, one that is requeued from outside neither.
if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    if [ $status = 143 ] || { [ $status = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; }; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $status
