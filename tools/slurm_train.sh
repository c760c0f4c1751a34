#!/usr/bin/env bash
# Train under Slurm, one task per GPU.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
usage 4 "GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS='...'" \
    'PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]' "$@"
check_file CONFIG "$3"
slurm "$1" "$2" "$tools/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"
