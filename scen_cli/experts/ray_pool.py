"""Experts trained by Ray: as many actors as asked for, on this machine or, with `RAY_ADDRESS`, on a cluster's nodes.

Nodes must find scen, and the base where the settings say or by `SCEN_BASE`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from scen_cli.errors import UsageError
from scen_cli.experts.fit_records import Group
from scen_cli.experts.scheduling import WorkerDied, Workers
from scen_cli.experts.training_worker import TrainingWorker

try:
    import ray
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
except ImportError as error:
    raise UsageError("`--engine ray` needs Ray", hint="pip install 'scen-cli[ray]' brings it") from error


LOST = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError)  # a worker, or what it gave


class RayPool(Workers):
    """Actors, each with a CPU and, where there are any, a GPU. One begins when there is room for it, also one that
    takes the place of another whose process or node died; until then the others go on."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
        self._began = not ray.is_initialized()
        if self._began:
            where = os.environ.get("RAY_ADDRESS", "local")  # else Ray looks for clusters that were here, and are gone
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            ray.init(where, **quiet, **({"include_dashboard": False} if where == "local" else {}))
        gpus = int(device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)  # this machine need not have one
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus)(TrainingWorker)
        self._how = dict(settings), device, torch.get_num_threads()
        self.count, self.actors = workers, [self._actor.remote(*self._how) for _ in range(workers)]

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for actor in self.actors:
            ray.kill(actor)
        if self._began:
            ray.shutdown()

    def send(self, worker: int, batch: Sequence[Group]) -> Any:
        return self.actors[worker].fit.remote(batch)

    def ready(self, worker: int) -> Any:
        return self.actors[worker].is_there.remote()

    def replace(self, worker: int) -> None:
        ray.kill(self.actors[worker])  # it may be out of reach alone
        self.actors[worker] = self._actor.remote(*self._how)

    def first_done(self, futures: Iterable[Any]) -> Iterable[Any]:
        return ray.wait(list(futures), num_returns=1)[0]

    def result(self, future: Any) -> Any:
        try:
            return ray.get(future)
        except LOST as error:
            raise WorkerDied from error
        except RayTaskError as error:  # what was raised there, without Ray's account of it
            raise error.cause from None
