"""Experts trained in several processes, each with a base of its own, one on each GPU; what they give comes in order.

A worker knows the project's settings, not its folder: the parent alone writes. A worker that dies is replaced, and
what it was at is trained anew.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context, parent_process
from typing import Any

import torch

from scen_cli.editing.recipe import stored_recipe
from scen_cli.errors import ScenError
from scen_cli.loaded_base import LoadedBase
from scen_cli.training.fitting import Fitted, Group, fit
from scen_cli.training.packing import packed, unpacked

AHEAD = 2  # batches per worker that may wait to be committed: full experts are large
TRIES = 3  # times that a batch may end with its worker's death


class Trainee:
    """A base in a process of its own, ready to train by a project's recipe."""

    def __init__(self, settings: Mapping[str, Any], device: str, threads: int) -> None:
        """As many threads as the parent has: results depend on them in their last digits."""
        torch.set_num_threads(threads)
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        self._loaded, self._recipe = LoadedBase(settings, device), stored_recipe(dict(settings))

    def fit(self, groups: Sequence[Group]) -> bytes:
        return packed(fit(self._loaded, groups, self._recipe))


class WorkerPool:
    """Worker processes: `with WorkerPool(settings, 2) as pool: pool(batches)`."""

    def __init__(self, settings: Mapping[str, Any], workers: int, device: str = "auto") -> None:
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

    def __call__(self, batches: Sequence[Sequence[Group]]) -> Iterator[list[Fitted]]:
        """Experts of each batch, in order. Raises `ScenError` if a batch's worker dies again and again."""
        waiting, idle = deque(range(len(batches))), list(range(len(self._pools)))
        running: dict[Future[bytes], tuple[int, int]] = {}  # batch and worker
        done: dict[int, bytes] = {}
        deaths = [0] * len(batches)
        turn = 0
        while turn < len(batches):
            while idle and waiting and waiting[0] < turn + AHEAD * len(self._pools):
                place, worker = waiting.popleft(), idle.pop()
                try:
                    future = self._pools[worker].submit(_fit, list(batches[place]))
                except BrokenProcessPool:  # it died while it had nothing to do
                    self._pools[worker] = self._start(worker)
                    future = self._pools[worker].submit(_fit, list(batches[place]))
                running[future] = place, worker
            if turn in done:
                yield unpacked(done.pop(turn))
                turn += 1
                continue
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                place, worker = running.pop(finished)
                idle.append(worker)
                try:
                    done[place] = finished.result()
                except BrokenProcessPool as error:
                    deaths[place] += 1
                    if deaths[place] == TRIES:
                        told = f"a worker died {TRIES} times over the same edits: {batches[place][0][0].prompt!r}"
                        raise ScenError(
                            told, hint="out of memory? fewer `--workers`, or a smaller `--batch`"
                        ) from error
                    self._pools[worker] = self._start(worker)
                    waiting.appendleft(place)


def device_of(number: int, device: str) -> str:
    """The device of a worker: GPUs in turn, where there are several."""
    gpus = torch.cuda.device_count()
    return f"cuda:{number % gpus}" if gpus > 1 and device in ("auto", "cuda") else device


_how: tuple[Mapping[str, Any], str, int]  # a worker process is to train


@cache
def _trainee() -> Trainee:
    """Of a worker process, made with its first batch: what is wrong then is told to the parent."""
    return Trainee(*_how)


def _begin(settings: Mapping[str, Any], device: str, threads: int) -> None:
    global _how
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:  # even if that was killed
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _how = settings, device, threads


def _fit(groups: Sequence[Group]) -> bytes:
    return _trainee().fit(groups)
