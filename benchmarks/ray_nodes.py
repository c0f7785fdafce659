"""Checks that Ray survives the loss of a node: `python -m benchmarks.ray_nodes`

Starts three Ray nodes on this machine, each with its own agent. Two workers train ten experts, and a node is removed
while its worker trains. Compares the experts, bit for bit, with those that this process trains. Prints two lines.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from transformers.utils import logging

from scen_cli import Editor, new_project
from scen_cli.data.suites import demo_edits
from scen_cli.experts.ray_pool import RayPool
from scen_cli.model.base import load_base

CHANGES = {"expert": "low-rank", "expert_steps": 300, "extra_steps": 0, "require_learned": False}


def main() -> None:
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    batches = [[[record]] for record in demo_edits()[:10]]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    base = load_base("demo", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        editor = Editor(new_project(Path(folder), "demo", recipe="key", changes=CHANGES, base=base), base=base)
        started = time.perf_counter()
        with RayPool(editor.project.settings, 2, "cpu") as pool:
            run = pool(batches)
            trained = [next(run)]
            before = _nodes(pool)
            lost = next(node for node in workers if node.node_id in before)
            cluster.remove_node(lost, allow_graceful=False)
            trained += run
            after = _nodes(pool)
        seconds = time.perf_counter() - started
        pairs = [
            (remote[0].fit.expert, editor.fit(batch)[0].fit.expert)
            for remote, batch in zip(trained, batches, strict=True)
        ]
    same = sum(torch.equal(a.a, b.a) and torch.equal(a.b, b.b) for a, b in pairs)
    print(f"workers on {len(set(before))} nodes; one node was lost; then on {len(set(after))} of the remaining nodes")
    print(f"{same} of {len(batches)} experts are the same, bit for bit; {seconds:.0f} s")
    ray.shutdown()
    cluster.shutdown()


def _nodes(pool: RayPool) -> list[str]:
    """The node of each worker."""
    ask = [actor.__ray_call__.remote(lambda _self: ray.get_runtime_context().get_node_id()) for actor in pool.actors]
    return list(ray.get(ask))


if __name__ == "__main__":
    main()
