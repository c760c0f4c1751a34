#!/usr/bin/env bash
# Train in several processes, one per GPU, or on the CPU without a GPU.
source "$(dirname "${BASH_SOURCE[0]}")/_launch.sh"
usage 2 'NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500' \
    'CONFIG GPUS [flags of train.py]' "$@"
check_file CONFIG "$1"
dist "$2" "$tools/train.py" "$1" --launcher pytorch "${@:3}"
