#!/usr/bin/env bash
# Evaluate in several processes, one per GPU, or on the CPU without a GPU.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
usage 3 'NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500' \
    'CONFIG CHECKPOINT GPUS [flags of test.py]' "$@"
check_file CONFIG "$1"
check_file CHECKPOINT "$2"
dist "$3" "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
