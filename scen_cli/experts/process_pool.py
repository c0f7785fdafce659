"""Experts trained in several processes, each with a base of its own, one on each GPU."""

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
    """Worker processes on this machine."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
        self.count = workers
        self._settings, self._devices = settings, [device_of(number, device) for number in range(workers)]
        self._pools = [self._start(number) for number in range(workers)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_error: object) -> None:
        for pool in self._pools:
            processes = list((pool._processes or {}).values())
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:  # what one is still at, nobody waits for
                process.kill()

    def _start(self, number: int) -> ProcessPoolExecutor:
        """One worker. (A pool for each: when one dies the others go on.)"""
        how = (self._settings, self._devices[number], torch.get_num_threads())
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin, initargs=how)

    def send(self, worker: int, batch: Sequence[Group]) -> Future[bytes]:
        try:
            return self._pools[worker].submit(_fit, batch)
        except BrokenProcessPool as error:
            raise WorkerDied from error

    def ready(self, worker: int) -> Future[Any]:
        at_once: Future[None] = Future()  # its process begins with its first batch
        at_once.set_result(None)
        return at_once

    def replace(self, worker: int) -> None:
        self._pools[worker] = self._start(worker)

    def first_done(self, futures: Iterable[Future[Any]]) -> Iterable[Future[Any]]:
        return wait(futures, return_when=FIRST_COMPLETED).done

    def result(self, future: Future[Any]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise WorkerDied from error


def device_of(number: int, device: str) -> str:
    """The device of a worker: GPUs in turn, where there are several."""
    gpus = torch.cuda.device_count()
    return f"cuda:{number % gpus}" if gpus > 1 and device in ("auto", "cuda") else device


_trainee: TrainingWorker  # of a worker process


def _begin(settings: Mapping[str, Any], device: str, threads: int) -> None:
    global _trainee
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # even if that was killed
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _trainee = TrainingWorker(settings, device, threads)


def _fit(groups: Sequence[Group]) -> bytes:
    return _trainee.fit(groups)
