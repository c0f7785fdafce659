"""Train experts in several processes on this machine, each with its own base, one per GPU.

`Workers` distributes batches over workers of any kind: results come in order, and a worker that dies is replaced.
"""

from __future__ import annotations

import os
import signal
import threading
from abc import abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from scen_cli.errors import ScenError
from scen_cli.experts.fit_records import FittedExpert, Group, TrainingWorker, experts_from_bytes

AHEAD = 2  # batches per worker that may wait for their commit: full experts are large
MAX_DEATHS = 3  # of workers on the same batch, or of one worker without a batch


class WorkerDied(Exception):
    """A worker process died."""


class Workers(AbstractContextManager[Any]):
    """Workers with the numbers 0 to `count` - 1. Use: `with WorkerPool(settings, 2) as workers: workers(batches)`.

    `send` and `ready` return futures of any kind that `first_done` and `result` understand.
    """

    count: int

    @abstractmethod
    def send(self, worker: int, batch: Sequence[Group]) -> Any:
        """Start training a batch; returns a future. Raises `WorkerDied` if the worker is known to be dead."""

    @abstractmethod
    def ready(self, worker: int) -> Any:
        """A future that completes when the worker can take a batch."""

    @abstractmethod
    def replace(self, worker: int) -> None:
        """Start a new worker instead of a dead one."""

    @abstractmethod
    def first_done(self, futures: Iterable[Any]) -> Iterable[Any]:
        """Wait until at least one future completes; returns those that have."""

    @abstractmethod
    def result(self, future: Any) -> Any:
        """The result of a future. Raises `WorkerDied` if its worker died, and errors of the worker as they are."""

    def __call__(self, batches: Sequence[Sequence[Group]]) -> Iterator[list[FittedExpert]]:
        """Train batches; yields the experts of each, in order.

        Raises:
            ScenError: Workers died `MAX_DEATHS` times on the same batch, or one of them without a batch.
        """
        waiting, idle = deque(range(len(batches))), list[int]()
        running: dict[Any, tuple[int | None, int]] = {}  # future -> batch (None: the worker starts), worker
        done: dict[int, bytes] = {}
        deaths: Counter[tuple[str, int]] = Counter()  # by batch; by worker, if it had no batch

        def restart(worker: int, batch: int | None, error: WorkerDied) -> None:
            key = ("worker", worker) if batch is None else ("batch", batch)
            deaths[key] += 1
            if deaths[key] == MAX_DEATHS:
                when = "without a batch" if batch is None else f"on the same edits: {batches[batch][0][0].prompt!r}"
                hint = "out of memory? use fewer `--workers`, or a smaller `--batch`"
                raise ScenError(f"a worker died {MAX_DEATHS} times {when}", hint=hint) from error
            if batch is not None:
                waiting.appendleft(batch)
            self.replace(worker)
            running[self.ready(worker)] = None, worker

        for worker in range(self.count if batches else 0):
            running[self.ready(worker)] = None, worker
        next_result = 0
        while next_result < len(batches):
            while idle and waiting and waiting[0] < next_result + AHEAD * self.count:
                batch, worker = waiting.popleft(), idle.pop()
                try:
                    running[self.send(worker, list(batches[batch]))] = batch, worker
                except WorkerDied as error:  # it died while it was idle: not because of this batch
                    waiting.appendleft(batch)
                    restart(worker, None, error)
            if next_result in done:
                yield experts_from_bytes(done.pop(next_result))
                next_result += 1
                continue
            for future in self.first_done(running):
                finished, worker = running.pop(future)
                try:
                    result = self.result(future)
                except WorkerDied as error:
                    restart(worker, finished, error)
                    continue
                idle.append(worker)
                if finished is not None:
                    done[finished] = result
                    deaths["worker", worker] = 0


class WorkerPool(Workers):
    """Worker processes. Each has an executor of its own, so the death of one does not affect the others."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
        self.count = workers
        self._settings, self._devices = settings, [device_of_worker(number, device) for number in range(workers)]
        self._pools = [self._start(number) for number in range(workers)]

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
