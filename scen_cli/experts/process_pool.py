"""Train experts in several processes on this machine, each with its own base, one per GPU."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from scen_cli.experts.fit_records import Group
from scen_cli.experts.scheduling import WorkerDied, Workers
from scen_cli.experts.training_worker import TrainingWorker


class WorkerPool(Workers):
    """Worker processes. Each has an executor of its own, so the death of one does not affect the others."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
        self.count = workers
        self._settings, self._devices = settings, [device_of_worker(number, device) for number in range(workers)]
        self._pools = [self._start(number) for number in range(workers)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for pool in self._pools:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # the results of running batches are no longer wanted
                process.kill()

    def _start(self, number: int) -> ProcessPoolExecutor:
        arguments = (self._settings, self._devices[number], torch.get_num_threads())
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_initialize, initargs=arguments)

    def send(self, worker: int, batch: Sequence[Group]) -> Future[bytes]:
        try:
            return self._pools[worker].submit(_fit, batch)
        except BrokenProcessPool as error:
            raise WorkerDied from error

    def ready(self, worker: int) -> Future[Any]:
        """Completed at once: the process starts with its first batch."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def replace(self, worker: int) -> None:
        self._pools[worker] = self._start(worker)

    def first_done(self, futures: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
        return wait(futures, return_when=FIRST_COMPLETED).done

    def result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise WorkerDied from error


def device_of_worker(number: int, device: str) -> str:
    """The device of a worker: GPUs in turn, if there are several."""
    gpus = torch.cuda.device_count()
    return f"cuda:{number % gpus}" if gpus > 1 and device in ("auto", "cuda") else device


_worker: TrainingWorker  # of this worker process


def _initialize(settings: Mapping[str, Any], device: str, threads: int) -> None:
    """Set up a worker process."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    parent = parent_process()
    assert parent is not None

    def exit_with_parent() -> None:  # even if the parent was killed
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    _worker = TrainingWorker(settings, device, threads)


def _fit(groups: Sequence[Group]) -> bytes:
    return _worker.fit(groups)
