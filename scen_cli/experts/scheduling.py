"""Distribute batches over workers. Results come in order, and a worker that dies is replaced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from scen_cli.errors import ScenError
from scen_cli.experts.fit_records import FittedExpert, Group
from scen_cli.experts.training_worker import experts_from_bytes

AHEAD = 2  # batches per worker that may wait for their commit: full experts are large
MAX_DEATHS = 3  # of workers on the same batch, or of one worker without a batch


class WorkerDied(Exception):
    """A worker process died."""


class Workers(ABC):
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
