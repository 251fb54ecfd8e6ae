#!/usr/bin/env bash
# A recipe on Slurm: Ray's head and workers on the nodes of one allocation, then the command line.
#   sbatch infra/slurm.sh run full --preset cifar10 data.path=/data/cifar-10-batches-py
# The store is on the shared disk that holds the project; submit the same line again to go on.
#SBATCH --job-name=diffusion-bench
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --signal=B:INT@60  # a minute before the end: resumable states are kept
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname -i | awk '{print $1}'):$port
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_PER_TASK:-0}
# Processes of other users on these nodes must not join.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(head -c 32 /dev/urandom | base64 | tr -dc a-zA-Z0-9)}

trap 'kill -INT "${command:-}" 2>/dev/null; wait "${command:-}"; exit 130' INT TERM
trap 'kill $(jobs -p) 2>/dev/null' EXIT
srun --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --node-ip-address="${address%:*}" --port="$port" \
    --num-cpus="$cpus" --num-gpus="$gpus" --include-dashboard=false --block &
sleep "${HEAD_SECONDS:-20}"
for node in "${nodes[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$node" \
        ray start --address="$address" --num-cpus="$cpus" --num-gpus="$gpus" --block &
done
# Nodes that come later join while the command runs.
sleep "${WORKER_SECONDS:-10}"
python -m pipeline "$@" --address "$address" &
command=$!
wait "$command"
