"""Train experts with Ray actors, on this machine or, if `RAY_ADDRESS` is set, on the nodes of a cluster.

Each node needs scen, and the base at the path of the settings or of `SCEN_BASE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from scen_cli.errors import UsageError
from scen_cli.experts.fit_records import Group, TrainingWorker
from scen_cli.experts.process_pool import WorkerDied, Workers

try:
    import ray
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
except ImportError as error:
    raise UsageError("`--engine ray` needs Ray", hint="pip install 'scen-cli[ray]'") from error


DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError)  # the worker or its result is lost


class RayPool(Workers):
    """Actors with one CPU each and, if the cluster has any, one GPU. Ray starts an actor when there is room for it;
    until then the others work."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            address = os.environ.get("RAY_ADDRESS", "local")  # by default Ray would search for a running cluster
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            ray.init(address, **options, **({"include_dashboard": False} if address == "local" else {}))
        gpus = int(device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)  # this machine itself may have none
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus)(TrainingWorker)
        self._arguments = dict(settings), device, torch.get_num_threads()
        self.count, self.actors = workers, [self._actor.remote(*self._arguments) for _ in range(workers)]

    def __exit__(self, *_error: object) -> None:
        for actor in self.actors:
            ray.kill(actor)
        if self._started_ray:
            ray.shutdown()

    def send(self, worker: int, batch: Sequence[Group]) -> Any:
        return self.actors[worker].fit.remote(batch)

    def ready(self, worker: int) -> Any:
        return self.actors[worker].ping.remote()

    def replace(self, worker: int) -> None:
        ray.kill(self.actors[worker])  # it may be alive, but unreachable
        self.actors[worker] = self._actor.remote(*self._arguments)

    def first_done(self, futures: Iterable[Any]) -> Iterable[Any]:
        return ray.wait(list(futures), num_returns=1)[0]

    def result(self, future: Any) -> Any:
        try:
            return ray.get(future)
        except DEATHS as error:
            raise WorkerDied from error
        except RayTaskError as error:  # raise the worker's own error, without Ray's wrapper
            raise error.cause from None
