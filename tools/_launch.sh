# Shared by the four scripts beside it, which source it: check their arguments, start the processes.
set -euo pipefail

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python}
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"

fail() {
    echo "error: $*" >&2
    exit 2
}

# usage LEAST "VARIABLES" "ARGUMENTS" "$@": the arguments of the script must be LEAST or more.
usage() {
    local least=$1 variables=$2 arguments=$3
    shift 3
    (($# >= least)) && return
    echo "usage: [$variables] $0 $arguments" >&2
    exit 2
}

check_file() { # name, path or URL
    [[ $2 == *://* || -f $2 ]] || fail "$1 $2 does not exist; give the path of a file."
}

check_count() { # name, value
    [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 is '$2', expected a number of at least 1."
}

# dist GPUS SCRIPT ...: start a script in one process per GPU.
dist() {
    local gpus=$1 port=${PORT:-29500} devices
    shift
    check_count GPUS "$gpus"
    check_count PORT "$port"
    ((port < 65536)) || fail "PORT is $port, expected a number below 65536."
    devices=$("$python" -c 'import torch; print(torch.cuda.device_count())')
    if ((devices && gpus > devices)); then
        fail "GPUS is $gpus, but this machine has $devices; start at most $devices processes."
    fi
    if [[ ${NODE_RANK:-0} == 0 ]] && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        fail "PORT $port is in use, perhaps by another run; choose one: PORT=$((port + 1)) $0 ..."
    fi
    exec "$python" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="$port" \
        --nproc_per_node="$gpus" \
        "$@"
}

# slurm PARTITION JOB_NAME SCRIPT ...: start a script in one task per GPU.
slurm() {
    local partition=$1 job_name=$2 gpus=${GPUS:-8} gpus_per_node srun_args
    shift 2
    check_count GPUS "$gpus"
    # A job smaller than a node asks for no more than it uses.
    gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    check_count GPUS_PER_NODE "$gpus_per_node"
    check_count CPUS_PER_TASK "${CPUS_PER_TASK:-5}"
    read -ra srun_args <<<"${SRUN_ARGS:-}"
    exec srun \
        --partition="$partition" \
        --job-name="$job_name" \
        --gres="gpu:$gpus_per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$gpus_per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        "${srun_args[@]}" \
        "$python" -u "$@"
}
