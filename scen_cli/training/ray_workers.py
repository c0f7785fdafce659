"""Experts trained by Ray: as many actors as asked for, on this machine or, with `RAY_ADDRESS`, on a cluster's nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from scen_cli.errors import UsageError
from scen_cli.training.fitting import Fitted, Group
from scen_cli.training.packing import unpacked
from scen_cli.training.workers import TRIES, Trainee

try:
    import ray
    from ray.util import ActorPool
except ImportError as error:
    raise UsageError("`--engine ray` needs Ray", hint="pip install 'scen-cli[ray]' brings it") from error


class RayPool:
    """Actors that train: `with RayPool(settings, 2) as pool: pool(batches)`. One that dies is restarted by Ray, and
    what it was at is trained anew. Nodes must find the base where the settings say, or by `SCEN_BASE`."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
        self._began = not ray.is_initialized()
        if self._began:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
        gpus = int(device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)  # this machine need not have one
        actor = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=TRIES, max_task_retries=TRIES)(Trainee)
        self.actors = [actor.remote(dict(settings), device, torch.get_num_threads()) for _ in range(workers)]

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for actor in self.actors:
            ray.kill(actor)
        if self._began:
            ray.shutdown()

    def __call__(self, batches: Sequence[Sequence[Group]]) -> Iterator[list[Fitted]]:
        """Experts of each batch, in order."""
        pool = ActorPool(self.actors)
        for data in pool.map(lambda actor, batch: actor.fit.remote(batch), [list(batch) for batch in batches]):
            yield unpacked(data)
