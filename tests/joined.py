"""`python -m tests.joined ... --address ADDR`: the toy's command line, once the cluster at ADDR has
as many nodes as NODES says."""

import os
import sys
import time

import ray

if __name__ == "__main__":
    ray.init(sys.argv[sys.argv.index("--address") + 1], log_to_driver=False)
    while (there := sum(node["Alive"] for node in ray.nodes())) < int(os.environ["NODES"]):
        time.sleep(0.2)
    print(f"{there} nodes joined, {ray.cluster_resources()['CPU']:g} CPUs", flush=True)
    ray.shutdown()
    os.execv(sys.executable, [sys.executable, "-m", "tests.toy", *sys.argv[1:]])
