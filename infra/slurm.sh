#!/usr/bin/env bash
# A recipe on Slurm: Ray's head and workers on the nodes of one allocation, then the command line.
#   sbatch infra/slurm.sh run full --preset cifar10 data.path=/data/cifar-10-batches-py
# The store is on the shared disk that holds the project; submit the same line again to go on. Each
# node gives what Slurm has given of it. The first lines ask for it; sbatch's options change them.
#SBATCH --job-name=diffusion-bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:INT@60  # a minute before the end: resumable states are kept
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))
# Processes of other users on these nodes must not join.
token=$(head -c 32 /dev/urandom | base64 | tr -dc a-zA-Z0-9)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$token}

trap 'kill -INT "${command:-}" 2>/dev/null; wait "${command:-}"; exit 130' INT TERM
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT

# On a node: ray start, with as many CPUs and GPUs as Slurm gives there.
start='cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-$(nproc)}}
gpus=${SLURM_GPUS_ON_NODE:-0}
exec ray start "$@" --num-cpus="$cpus" --num-gpus="${gpus##*:}" --block'
# NODE COMMAND...: becomes a step of one task with all that the job has of that node.
on() {
    exec srun --nodes=1 --ntasks=1 --overlap --export=ALL -w "$1" \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${@:2}"
}

address=$(on "${nodes[0]}" hostname -i | awk '{print $1}'):$port
on "${nodes[0]}" bash -c "$start" ray --head --node-ip-address="${address%:*}" --port="$port" \
    --include-dashboard=false --disable-usage-stats &
for ((tries = 0; ; tries++)); do  # until the head answers
    ray health-check --address "$address" >/dev/null 2>&1 && break
    kill -0 $! 2>/dev/null || { echo "Ray's head did not start on ${nodes[0]}" >&2; exit 1; }
    ((tries < ${HEAD_TRIES:-120})) || { echo "Ray's head does not answer at $address" >&2; exit 1; }
    sleep 1
done
for node in "${nodes[@]:1}"; do
    on "$node" bash -c "$start" ray --address="$address" --disable-usage-stats &
done
# Nodes that come later join while the command runs; what they bring counts from the beginning.
each_cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
each_gpus=${SLURM_GPUS_ON_NODE:-0}
python -m pipeline "$@" --address "$address" \
    --up-to "cpus=$((each_cpus * ${#nodes[@]})),gpus=$((${each_gpus##*:} * ${#nodes[@]}))" &
command=$!
wait "$command"
