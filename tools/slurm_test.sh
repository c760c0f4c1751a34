#!/usr/bin/env bash
# Evaluate under Slurm, one task per GPU.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
usage 4 "GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS='...'" \
    'PARTITION JOB_NAME CONFIG CHECKPOINT [flags of test.py]' "$@"
check_file CONFIG "$3"
check_file CHECKPOINT "$4"
slurm "$1" "$2" "$tools/test.py" "$3" "$4" --launcher=slurm "${@:5}"
