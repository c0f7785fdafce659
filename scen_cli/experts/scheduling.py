"""Batches of edits given to several workers: what they give comes in order, whatever dies meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from scen_cli.errors import ScenError
from scen_cli.experts.fit_records import FittedExpert, Group
from scen_cli.experts.serialize import unpacked

AHEAD = 2  # batches per worker that may wait to be committed: full experts are large
TRIES = 3  # times that a batch may end with its worker's death


class WorkerDied(Exception):
    """A worker did."""


class Workers(ABC):
    """Workers by number, 0 to `count` - 1: `with KIND(settings, 2) as workers: workers(batches)`.

    What is sent comes back as a future, of whatever kind: `result` of it raises `WorkerDied` if its worker did.
    """

    count: int

    @abstractmethod
    def send(self, worker: int, batch: Sequence[Group]) -> Any:
        """Have a batch trained. Raises `WorkerDied` if the worker is known to be dead."""

    @abstractmethod
    def ready(self, worker: int) -> Any:
        """A future that is done when the worker can take a batch."""

    @abstractmethod
    def replace(self, worker: int) -> None:
        """Put another in a dead worker's place."""

    @abstractmethod
    def first_done(self, futures: Iterable[Any]) -> Iterable[Any]:
        """Wait for one of them at least."""

    @abstractmethod
    def result(self, future: Any) -> Any: ...

    def __call__(self, batches: Sequence[Sequence[Group]]) -> Iterator[list[FittedExpert]]:
        """Experts of each batch, in order. Raises `ScenError` if a batch's worker dies again and again."""
        waiting, idle = deque(range(len(batches))), list[int]()
        running: dict[Any, tuple[int | None, int]] = {}  # batch (None: it begins) and worker
        done: dict[int, bytes] = {}
        deaths = _Deaths(batches, self.count)
        turn = 0
        for worker in range(self.count if batches else 0):
            running[self.ready(worker)] = None, worker
        while turn < len(batches):
            while idle and waiting and waiting[0] < turn + AHEAD * self.count:
                following, worker = waiting.popleft(), idle.pop()
                try:
                    running[self.send(worker, list(batches[following]))] = following, worker
                except WorkerDied as error:  # while it had nothing to do
                    waiting.appendleft(following)
                    deaths.count(None, worker, error)
                    self.replace(worker)
                    running[self.ready(worker)] = None, worker
            if turn in done:
                yield unpacked(done.pop(turn))
                turn += 1
                continue
            for future in self.first_done(running):
                place, worker = running.pop(future)
                try:
                    found = self.result(future)
                except WorkerDied as error:
                    deaths.count(place, worker, error)
                    if place is not None:
                        waiting.appendleft(place)
                    self.replace(worker)
                    running[self.ready(worker)] = None, worker
                    continue
                idle.append(worker)
                if place is not None:
                    done[place] = found
                    deaths.idle[worker] = 0


class _Deaths:
    """How often workers died, over each batch, and each worker since it last gave one while it had none."""

    def __init__(self, batches: Sequence[Sequence[Group]], workers: int) -> None:
        self._batches, self._over, self.idle = batches, [0] * len(batches), [0] * workers

    def count(self, place: int | None, worker: int, error: WorkerDied) -> None:
        """Raises `ScenError` if it is once too often."""
        if place is None:
            self.idle[worker] += 1
        else:
            self._over[place] += 1
        if TRIES in (self.idle[worker], -1 if place is None else self._over[place]):
            over = (
                "with nothing to do" if place is None else f"over the same edits: {self._batches[place][0][0].prompt!r}"
            )
            hint = "out of memory? fewer `--workers`, or a smaller `--batch`"
            raise ScenError(f"a worker died {TRIES} times {over}", hint=hint) from error
